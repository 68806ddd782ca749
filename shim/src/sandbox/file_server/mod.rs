//! The pod's file server: the process `ravelin-fs`, which serves directories of the node to the guest as its file volumes.
//!
//! It is there from the pod's first file volume to the pod's end. It may have been taken over by the guest, so what it says is
//! bounded, and every order has a deadline. What is served once is served until the end, for the guest may have files of it open.
//!
//! Nothing of it has to be remembered for whoever cleans up after a shim that was killed: it ends by itself when the shim's socket or
//! the machine's closes, and it lives in the pod's cgroup, which is emptied before it is removed.

mod control;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use ravelin_fs::control::request_sockets;
use rustix::process::WaitIdStatus;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use control::Control;

use super::supervisor::deadline;
use crate::birth::{self, Inheritance};
use crate::cgroup::{CgroupError, PodCgroup, oom};
use crate::error::chain;
use crate::machine::{Machine, MachineError, log_pipe};
use crate::privileges::unrestricted;
use crate::sync::{blocking, lock};
use crate::volumes::{Directory, Identity, Serve};

/// Time between the server's last word and the end of its process, before the two are reported apart.
const EXIT_GRACE: Duration = Duration::from_secs(2);

/// A directory that cannot be served.
#[derive(Debug, thiserror::Error)]
enum FileServerError {
    #[error("cannot start the pod's file server {path} (configuration key `fs.path`)")]
    Spawn {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot make a {what} for the pod's file server")]
    Plumbing {
        what: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("cannot start the pod's file server in the pod's cgroup")]
    Cgroup(#[source] CgroupError),
    #[error("cannot give the pod's machine its file server")]
    Attach(#[source] MachineError),
    #[error("the pod's file server refuses the volume: {0}")]
    Refused(String),
    #[error("the pod's file server did not take the volume within {} s", .0.as_secs())]
    Silent(Duration),
    #[error("cannot talk to the pod's file server")]
    Socket(#[source] io::Error),
    #[error(
        "the pod's file server has ended ({0}), and the pod's file volumes with it: the pod must be made anew"
    )]
    Ended(String),
    #[error("the pod has ended")]
    Over,
}

/// How to start a pod's file server.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    /// The `ravelin-fs` program.
    pub program: PathBuf,
    /// The pod's cgroup, in the form of the OCI spec.
    pub cgroups_path: String,
    /// Marks its lines in the log.
    pub sandbox_id: String,
    /// Time that it has for its start, and for one order.
    pub deadline: Duration,
}

/// A pod's file server, once there is a volume for it.
#[derive(Debug)]
pub struct FileServer {
    settings: Settings,
    machine: Machine,
    state: tokio::sync::Mutex<State>,
    /// Something is served that the guest may write to.
    writable: AtomicBool,
    /// The pod has ended: an order that the process does not answer is not waited for.
    over: CancellationToken,
}

#[derive(Debug, Default)]
enum State {
    /// Nothing is served yet.
    #[default]
    Idle,
    Started(Process),
    /// The pod has ended.
    Over,
}

/// A process that was started. Killed when dropped.
#[derive(Debug)]
struct Process {
    pid: u32,
    pidfd: OwnedFd,
    /// It is to end, which is nothing to report then.
    ending: Arc<AtomicBool>,
    exit: watch::Receiver<Option<WaitIdStatus>>,
    control: Arc<Mutex<Control>>,
    /// Numbers of what it serves.
    volumes: HashMap<Identity, u32>,
    /// Volumes that it was told of. A number is never given twice: it may have been heard although nobody said so.
    told: u32,
}

impl FileServer {
    pub(super) fn new(settings: Settings, machine: Machine) -> Self {
        let (state, writable) = (tokio::sync::Mutex::default(), AtomicBool::new(false));
        Self { settings, machine, state, writable, over: CancellationToken::new() }
    }

    async fn number(&self, directory: Directory) -> Result<u32, FileServerError> {
        let mut state = self.state.lock().await;
        if matches!(*state, State::Idle) {
            *state = State::Started(self.start().await?);
        }
        let State::Started(process) = &mut *state else { return Err(FileServerError::Over) };
        if let Some(status) = *process.exit.borrow() {
            return Err(FileServerError::Ended(describe(&status)));
        }
        let Directory { identity, read_only, tree } = directory;
        if let Some(number) = process.volumes.get(&identity) {
            return Ok(*number);
        }
        let number = process.told;
        process.told += 1;
        let (control, patience) = (Arc::clone(&process.control), self.settings.deadline);
        match blocking(move || lock(&control).add(number, read_only, &tree, patience)).await {
            // A server that ends hangs up first.
            Err(error @ FileServerError::Socket(_)) => {
                let mut exit = process.exit.clone();
                return match timeout(EXIT_GRACE, exit.wait_for(Option::is_some)).await {
                    Ok(Ok(status)) => {
                        Err(FileServerError::Ended(status.as_ref().map(describe).unwrap_or_default()))
                    }
                    _ => Err(error),
                };
            }
            done => done?,
        }
        process.volumes.insert(identity, number);
        self.writable.fetch_or(!read_only, Ordering::Relaxed);
        Ok(number)
    }

    /// Starts the process in the pod's cgroup and gives it to the machine.
    async fn start(&self) -> Result<Process, FileServerError> {
        let cgroup = PodCgroup::open(&self.settings.cgroups_path).map_err(FileServerError::Cgroup)?;
        let birthplace = cgroup.birthplace().map_err(FileServerError::Cgroup)?;
        let begins_there = birthplace.is_some();
        let (process, machines) = self.launch(birthplace).await?;
        if !begins_there {
            cgroup.add(process.pid).map_err(FileServerError::Cgroup)?;
        }
        self.machine.attach_file_server(machines).await.map_err(FileServerError::Attach)?;
        tracing::info!(sandbox = self.settings.sandbox_id, "the pod's file server has started");
        Ok(process)
    }

    /// Starts the process, in `cgroup` if one is given. Gives the machine's end of the socket for requests.
    async fn launch(&self, cgroup: Option<OwnedFd>) -> Result<(Process, OwnedFd), FileServerError> {
        let plumbing = |what| move |source| FileServerError::Plumbing { what, source };
        let failed = |source| FileServerError::Spawn { path: self.settings.program.clone(), source };
        let (ours, theirs) = control::sockets(self.settings.deadline).map_err(plumbing("control socket"))?;
        let (machines, requests) = request_sockets().map_err(plumbing("socket for requests"))?;
        let sandbox = self.settings.sandbox_id.clone();
        let log = log_pipe(&sandbox, "fs").map_err(plumbing("log pipe"))?;
        let null = File::options().read(true).write(true).open("/dev/null").map_err(failed)?;
        let inheritance = Inheritance { null: null.into(), log, sockets: vec![theirs, requests] };
        let program = CString::new(self.settings.program.as_os_str().as_bytes());
        let program = [program.map_err(|error| failed(error.into()))?];
        let score = oom::score(&self.settings.cgroups_path);
        let birth = move || {
            let born = birth::spawn(&program, &inheritance, cgroup.as_ref().map(AsFd::as_fd))?;
            if let Err(error) = oom::set(born.pid, score) {
                tracing::warn!(sandbox, "the file server keeps containerd's out-of-memory score: {error}");
            }
            Ok::<_, io::Error>(born)
        };
        // Its jail is made of mounts.
        let born = timeout(self.settings.deadline, unrestricted("birth", birth)).await;
        let born = born.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(failed)?;
        Ok((self.follow(born, ours).map_err(failed)?, machines))
    }

    /// Waits from now on for the end of a process that has begun.
    fn follow(&self, born: birth::Born, control: OwnedFd) -> io::Result<Process> {
        let (pid, sandbox) = (born.pid, self.settings.sandbox_id.clone());
        // SAFETY: the AsyncFd owns the descriptor, which nobody else closes, and an OwnedFd never changes its number.
        let watched = unsafe { AsyncFd::register_with_interest(born.pidfd.try_clone()?, Interest::READABLE) };
        let watched = watched.map_err(io::Error::from)?;
        let pidfd = born.keep()?;
        let (sender, exit) = watch::channel(None);
        let ending = Arc::new(AtomicBool::new(false));
        let expected = Arc::clone(&ending);
        tokio::spawn(async move {
            let status = match birth::reap(&watched).await {
                Ok(status) => status,
                Err(error) => {
                    tracing::warn!(sandbox, pid, "cannot wait for the pod's file server: {error}");
                    return;
                }
            };
            let how = describe(&status);
            if expected.load(Ordering::Relaxed) || status.exit_status() == Some(0) {
                // Its status is 0 when the machine hung up.
                tracing::info!(sandbox, pid, "the pod's file server has ended: {how}");
            } else {
                tracing::error!(
                    sandbox,
                    pid,
                    "the pod's file server has ended: {how}; its volumes answer with I/O errors from now on"
                );
            }
            let _ = sender.send(Some(status));
        });
        let control = Arc::new(Mutex::new(Control::new(control)));
        Ok(Process { pid, pidfd, ending, exit, control, volumes: HashMap::new(), told: 0 })
    }

    /// Whether it serves, or has served, what the guest may write to.
    pub fn serves_writable(&self) -> bool {
        self.writable.load(Ordering::Relaxed)
    }

    /// Ends the process and waits until it is gone; nothing is served any more.
    pub async fn end(&self) {
        self.over.cancel();
        let over = async {
            let State::Started(process) = std::mem::replace(&mut *self.state.lock().await, State::Over)
            else {
                return;
            };
            let mut exit = process.exit.clone();
            drop(process);
            // An error means that nobody waits for its end any more: the runtime is ending.
            let _ = exit.wait_for(Option::is_some).await;
        };
        if timeout(deadline::REMOVAL, over).await.is_err() {
            tracing::warn!(sandbox = self.settings.sandbox_id, "the pod's file server does not end");
        }
    }
}

#[async_trait]
impl Serve for FileServer {
    async fn serve(&self, directory: Directory) -> Result<u32, String> {
        let number = tokio::select! {
            biased;
            () = self.over.cancelled() => Err(FileServerError::Over),
            number = self.number(directory) => number,
        };
        number.map_err(|error| chain(&error))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::Relaxed);
        birth::kill(self.pidfd.as_fd());
    }
}

impl From<crate::sync::Cancelled> for FileServerError {
    fn from(cancelled: crate::sync::Cancelled) -> Self {
        Self::Socket(cancelled.into())
    }
}

/// How a process ended.
fn describe(status: &WaitIdStatus) -> String {
    match (status.terminating_signal(), status.exit_status()) {
        (Some(libc::SIGSYS), _) => {
            "killed by the node's kernel for a system call that it may not make".to_owned()
        }
        (Some(signal), _) => format!("killed by signal {signal}"),
        (None, status) => format!("exit status {}", status.unwrap_or(-1)),
    }
}
