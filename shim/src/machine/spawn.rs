use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use ravelin_vmm::control::{CONTROL_FD, transport};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::sync::watch;

use super::{Exit, MachineError, log};
use crate::state::ProcessRef;

/// How to start a machine's process.
#[derive(Debug, Clone)]
pub struct SpawnConfig {
    /// The `ravelin-vmm` program.
    pub vmm: PathBuf,
    /// User it runs as once it has jailed itself.
    pub uid: u32,
    /// Group it runs as.
    pub gid: u32,
    /// The pod's network namespace.
    pub netns: PathBuf,
    /// Time it has to answer a request, unless who asks says otherwise.
    pub deadline: Duration,
    /// Marks its lines in the log.
    pub sandbox_id: String,
}

/// A process that was started.
pub(super) struct Spawned {
    pub pid: u32,
    pub start_time: u64,
    pub pidfd: OwnedFd,
    pub control: OwnedFd,
    pub exit: watch::Receiver<Option<Exit>>,
}

pub(super) fn spawn(config: &SpawnConfig) -> Result<Spawned, MachineError> {
    let plumbing = |what| move |source| MachineError::Plumbing { what, source };
    let (ours, theirs) = transport::pair().map_err(plumbing("control socket"))?;
    let stderr = log::log_pipe(&config.sandbox_id, "vmm").map_err(plumbing("log pipe"))?;

    let mut command = Command::new(&config.vmm);
    command
        .arg("--uid")
        .arg(config.uid.to_string())
        .arg("--gid")
        .arg(config.gid.to_string())
        .arg("--netns")
        .arg(&config.netns)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(stderr);
    let control = theirs.as_raw_fd();
    // SAFETY: between fork and exec the closure calls only signal, fcntl, dup2 and close_range, which are async-signal-safe,
    // and allocates nothing.
    unsafe {
        command.pre_exec(move || hand_over(control));
    }
    let failed = |source| MachineError::Spawn { path: config.vmm.clone(), source };
    let mut child = tokio::process::Command::from(command).kill_on_drop(false).spawn().map_err(failed)?;
    drop(theirs);

    let lost = || failed(io::Error::other("it ended at once"));
    let pid = child.id().ok_or_else(lost)?;
    let raw = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(lost)?;
    // The child has not been reaped yet, so the pid is still its own.
    let opened = pidfd_open(raw, PidfdFlags::empty()).map_err(io::Error::from);
    let (pidfd, start_time) = match opened.and_then(|pidfd| Ok((pidfd, ProcessRef::of(pid)?.start_time))) {
        Ok(found) => found,
        Err(source) => {
            let _ = child.start_kill();
            tokio::spawn(async move { child.wait().await });
            return Err(failed(source));
        }
    };

    let (sender, exit) = watch::channel(None);
    let sandbox = config.sandbox_id.clone();
    tokio::spawn(async move {
        let exit = match child.wait().await {
            Ok(status) => Exit::from_status(status),
            Err(error) => {
                tracing::warn!(sandbox, pid, "cannot wait for the machine's process: {error}");
                Exit::Status(-1)
            }
        };
        tracing::info!(sandbox, pid, "machine ended: {exit}");
        let _ = sender.send(Some(exit));
    });
    Ok(Spawned { pid, start_time, pidfd, control: ours, exit })
}

/// Runs in the child: makes the control socket descriptor [`CONTROL_FD`] and every other one close on exec, and leaves
/// the machine's end to the shim: a node that goes down sends SIGTERM to all its processes at once.
fn hand_over(control: i32) -> io::Result<()> {
    // SAFETY: dup2, fcntl and close_range take integers only; a descriptor that is not open makes them fail. To ignore a
    // signal, which lasts through exec, installs no handler.
    unsafe {
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
            libc::signal(signal, libc::SIG_IGN);
        }
        if control == CONTROL_FD {
            if libc::fcntl(control, libc::F_SETFD, 0) < 0 {
                return Err(io::Error::last_os_error());
            }
        } else if libc::dup2(control, CONTROL_FD) < 0 {
            return Err(io::Error::last_os_error());
        }
        let first = (CONTROL_FD + 1).unsigned_abs();
        // Kernels before 5.11 lack the flag; all our descriptors are close-on-exec anyway.
        libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
    }
    Ok(())
}
