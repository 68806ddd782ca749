//! The spawner: a process with a single thread that builds containers.
//!
//! libcontainer clones without the C library's knowledge and changes its process's working directory, limits and
//! environment, so it must not run beside other threads. The agent therefore starts the spawner before it has any.
//! For each request the spawner forks again; that child reads the request, builds the container or exec, answers,
//! waits until the agent says that it has noted the new process, and exits, so that the process is handed to the agent, PID 1.
//! A process that nobody has noted is killed.

mod birth;
mod build;
mod console;
mod exec;
mod executor;
mod join;
mod keyring;
mod limits;
mod message;
mod own_program;
mod pause;
mod profile;
mod program;
mod scheduling;
mod user;
mod user_namespace;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::Pid;
use tokio::time::Instant;

use crate::error::AgentError;
pub use message::{Console, LateBuilder, Request, SpawnerError};
use message::{Reply, receive, receive_by, send};

/// The agent's end of the spawner.
#[derive(Debug)]
pub struct Spawner {
    socket: OwnedFd,
    pid: Pid,
}

/// A process the spawner made.
#[derive(Debug)]
pub struct Spawned {
    /// Its pid in the guest's PID namespace.
    pub pid: Pid,
    /// The terminal's master side, if one was asked for.
    pub console: Option<OwnedFd>,
}

impl Spawner {
    /// Starts the spawner, a process that executes this one's program again: its `main` has to begin with
    /// [`serve_if_called`]. Must be called while the process has only one thread.
    ///
    /// # Errors
    ///
    /// When the kernel refuses the socket pair or the fork.
    pub fn start() -> io::Result<Self> {
        let (ours, theirs) = pair()?;
        // SAFETY: the caller promises there is no other thread, so the child may go on as an ordinary process.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()),
            0 => {
                crate::log!("cannot execute the spawner: {}", own_program::execute(&theirs));
                std::process::exit(1)
            }
            pid => {
                let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidData)?;
                Ok(Self { socket: ours, pid })
            }
        }
    }

    /// A spawner that never answers, and the other end of its socket.
    #[cfg(test)]
    pub(crate) fn silent() -> io::Result<(Self, OwnedFd)> {
        let (socket, other) = pair()?;
        Ok((Self { socket, pid: rustix::process::getpid() }, other))
    }

    /// The spawner's own pid.
    #[must_use]
    pub const fn pid(&self) -> Pid {
        self.pid
    }

    /// Has a request carried out; blocks until it is done, but not beyond `deadline`. `fds` are what the request goes with,
    /// the new process's standard descriptors last.
    ///
    /// `note` is called with the new pid while that process cannot have been handed to the agent yet: whatever
    /// must know the pid before its exit can be seen belongs there. If it fails, the process is killed.
    ///
    /// # Errors
    ///
    /// With the builder's own words when it fails, when it ends without any, or when it is not done by `deadline`.
    pub fn spawn(
        &self,
        request: &Request,
        fds: &[BorrowedFd<'_>],
        deadline: Instant,
        note: impl FnOnce(&Spawned) -> Result<(), AgentError>,
    ) -> Result<(), SpawnerError> {
        let (ours, theirs) = pair().map_err(SpawnerError::Channel)?;
        send(&ours, request, fds)?;
        send(&self.socket, &(), &[theirs.as_fd()])?;
        drop(theirs);
        let patience = deadline.saturating_duration_since(Instant::now());
        let mut console = None;
        loop {
            let reply = match receive_by::<Reply>(&ours, deadline) {
                Err(SpawnerError::Channel(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(SpawnerError::Timeout { patience, builder: Some(LateBuilder::new(ours)) });
                }
                reply => reply?,
            };
            match reply {
                (Reply::Console, fds) => console = fds.into_iter().next(),
                (Reply::Pid(pid), _) => {
                    let pid = Pid::from_raw(pid).ok_or(SpawnerError::NoAnswer)?;
                    note(&Spawned { pid, console })?;
                    // Lets the builder exit, which hands the process to the agent.
                    return send(&ours, &(), &[]);
                }
                (Reply::Error(text), _) => return Err(SpawnerError::Build(text)),
                (Reply::Going, _) => return Err(SpawnerError::NoAnswer),
            }
        }
    }
}

/// Serves as the spawner, for good, if that is what this process was executed for.
pub fn serve_if_called() {
    if let Some(socket) = own_program::socket() {
        serve(&socket);
        std::process::exit(0);
    }
}

fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// The spawner's life: one fork per request, until the agent's end closes.
fn serve(socket: &OwnedFd) {
    set_name(c"spawner");
    // Nobody waits for the builders.
    // SAFETY: ignoring a signal installs no handler.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
    while let Ok(((), fds)) = receive::<()>(socket) {
        let Some(request) = fds.into_iter().next() else { continue };
        // SAFETY: this process has one thread, so the child may go on as an ordinary process.
        if unsafe { libc::fork() } == 0 {
            // SAFETY: restores the default action; libcontainer waits for its own children.
            unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
            set_name(c"builder");
            build::run(&request);
            std::process::exit(0);
        }
        // A failed fork closes the request's socket, which the agent sees as no answer.
    }
}

fn set_name(name: &std::ffi::CStr) {
    let _ = rustix::thread::set_name(name);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_builder_that_ends_without_an_answer_is_told_from_one_that_takes_too_long() {
        let (spawner, other) = Spawner::silent().unwrap();
        let spawn = |patience| {
            let deadline = Instant::now() + patience;
            spawner.spawn(&Request::Pause { ids: None }, &[], deadline, |_| Ok(())).unwrap_err()
        };
        let late = spawn(Duration::from_millis(20));
        assert!(matches!(late, SpawnerError::Timeout { .. }), "{late}");
        // As the spawner does when it cannot fork: it takes the builder's end of the socket and lets go of it.
        let failing = std::thread::spawn(move || while receive::<()>(&other).is_ok() {});
        let ended = spawn(Duration::from_secs(60));
        assert!(matches!(ended, SpawnerError::NoAnswer), "{ended}");
        drop(spawner);
        failing.join().unwrap();
    }
}
