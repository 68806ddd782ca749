use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use ravelin_vmm::control::transport;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use super::{Exit, MachineError, log};
use crate::birth::{self, Born, Inheritance, reap};
use crate::cgroup::oom;
use crate::privileges::unrestricted;
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
    /// Its out-of-memory score, from -1000 to 1000.
    pub oom_score: i32,
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

/// Starts the process, which is in `cgroup`, a directory of cgroup v2, if one is given.
pub(super) async fn spawn(config: &SpawnConfig, cgroup: Option<OwnedFd>) -> Result<Spawned, MachineError> {
    let (control, birth) = prepare(config, cgroup)?;
    // Its jail is made of mounts.
    let born = tokio::time::timeout(config.deadline, unrestricted("birth", birth)).await;
    let born = born.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    follow(config, control, born.map_err(|source| MachineError::Spawn { path: config.vmm.clone(), source })?)
}

/// Our end of the control socket, and the work that begins the process. Waits for the disk on which the program is.
pub(super) fn prepare(
    config: &SpawnConfig,
    cgroup: Option<OwnedFd>,
) -> Result<(OwnedFd, impl FnOnce() -> io::Result<Born> + Send + 'static), MachineError> {
    let plumbing = |what| move |source| MachineError::Plumbing { what, source };
    let failed = |source| MachineError::Spawn { path: config.vmm.clone(), source };
    let (ours, theirs) = transport::pair().map_err(plumbing("control socket"))?;
    let log = log::log_pipe(&config.sandbox_id, "vmm").map_err(plumbing("log pipe"))?;
    let null = File::options().read(true).write(true).open("/dev/null").map_err(failed)?;
    let inheritance = Inheritance { null: null.into(), log, sockets: vec![theirs] };
    let line = command_line(config).map_err(failed)?;
    let (sandbox, score) = (config.sandbox_id.clone(), config.oom_score);
    Ok((ours, move || {
        let born = birth::spawn(&line, &inheritance, cgroup.as_ref().map(AsFd::as_fd))?;
        if let Err(error) = oom::set(born.pid, score) {
            tracing::warn!(sandbox, "the machine keeps containerd's out-of-memory score: {error}");
        }
        Ok(born)
    }))
}

/// Waits from now on for the end of a process that has begun.
pub(super) fn follow(config: &SpawnConfig, control: OwnedFd, born: Born) -> Result<Spawned, MachineError> {
    let failed = |source| MachineError::Spawn { path: config.vmm.clone(), source };
    let pid = born.pid;
    // It has not been reaped yet, so the pid is still its own.
    let start_time = ProcessRef::of(pid).map_err(failed)?.start_time;
    let watched = born.pidfd.try_clone().map_err(failed)?;
    // SAFETY: the AsyncFd owns the descriptor, which nobody else closes, and an OwnedFd never changes its number.
    let watched = unsafe { AsyncFd::register_with_interest(watched, Interest::READABLE) };
    let watched = watched.map_err(|error| failed(error.into()))?;
    let pidfd = born.keep().map_err(failed)?;

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
    Ok(Spawned { pid, start_time, pidfd, control, exit })
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
