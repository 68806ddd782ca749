use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use ravelin_vmm::control::transport;
use rustix::process::{WaitId, WaitIdOptions, WaitIdStatus, waitid};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use super::birth::{self, Born, Inheritance};
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
    /// Virtual processors that its machine will have.
    pub vcpus: u8,
    /// Size of its scratch disk: it may write no larger file.
    pub scratch_bytes: u64,
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

pub(super) fn spawn(config: &SpawnConfig, cgroup: Option<BorrowedFd<'_>>) -> Result<Spawned, MachineError> {
    let plumbing = |what| move |source| MachineError::Plumbing { what, source };
    let failed = |source| MachineError::Spawn { path: config.vmm.clone(), source };
    let (ours, theirs) = transport::pair().map_err(plumbing("control socket"))?;
    let log = log::log_pipe(&config.sandbox_id, "vmm").map_err(plumbing("log pipe"))?;
    let null = File::options().read(true).write(true).open("/dev/null").map_err(failed)?;
    let inheritance = Inheritance { null: null.as_fd(), log: log.as_fd(), control: theirs.as_fd() };
    let Born { pid, pidfd } =
        command_line(config).and_then(|line| birth::spawn(&line, &inheritance, cgroup)).map_err(failed)?;

    // The child has not been reaped yet, so the pid is still its own.
    let watched = ProcessRef::of(pid).and_then(|process| {
        let watched = pidfd.try_clone()?;
        // SAFETY: the AsyncFd owns the descriptor, which nobody else closes, and an OwnedFd never changes its number.
        Ok((process.start_time, unsafe { AsyncFd::register_with_interest(watched, Interest::READABLE) }?))
    });
    let (start_time, watched) = match watched {
        Ok(found) => found,
        Err(source) => {
            super::kill(pidfd.as_fd());
            let _ = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED);
            return Err(failed(source));
        }
    };

    let (sender, exit) = watch::channel(None);
    let sandbox = config.sandbox_id.clone();
    tokio::spawn(async move {
        let exit = match reap(&watched).await {
            Ok(status) => Exit::from_status(&status),
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

/// The program and its arguments.
fn command_line(config: &SpawnConfig) -> io::Result<Vec<CString>> {
    let text = |bytes: &[u8]| CString::new(bytes).map_err(io::Error::from);
    let mut line = vec![text(config.vmm.as_os_str().as_bytes())?];
    let numbers = [
        ("--uid", u64::from(config.uid)),
        ("--gid", u64::from(config.gid)),
        ("--vcpus", u64::from(config.vcpus)),
        ("--scratch-bytes", config.scratch_bytes),
    ];
    for (name, value) in numbers {
        line.extend([text(name.as_bytes())?, text(value.to_string().as_bytes())?]);
    }
    line.extend([text(b"--netns")?, text(config.netns.as_os_str().as_bytes())?]);
    Ok(line)
}

/// Waits for a child's end, and takes what it leaves.
async fn reap(child: &AsyncFd<OwnedFd>) -> io::Result<WaitIdStatus> {
    loop {
        let mut ready = child.readable().await?;
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        if let Some(status) = waitid(WaitId::PidFd(child.get_ref().as_fd()), options)? {
            return Ok(status);
        }
        ready.clear_ready();
    }
}
