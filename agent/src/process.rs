//! One process the host knows by name: a container's first one or an exec, and the states it goes through.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, OnceLock};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::sync::watch;

use crate::error::{AgentError, Attempt, Result};
use crate::reaper::Exit;
use crate::stdio::Pumps;
use crate::sync::lock;

/// The states of a process. It moves down this list, except that what cannot be started or deleted is as it was before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Being built.
    Creating,
    /// Built, or for an exec, noted; waits to be started.
    Created,
    /// Being started.
    Starting,
    /// Running its program.
    Running,
    /// Ended.
    Stopped,
    /// Being deleted.
    Deleting,
}

impl Phase {
    const fn word(self) -> &'static str {
        match self {
            Self::Creating => "being created",
            Self::Created => "created but not started",
            Self::Starting => "being started",
            Self::Running => "running",
            Self::Stopped => "stopped",
            Self::Deleting => "being deleted",
        }
    }
}

/// How a process ended, and whether memory was why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// Status and time.
    pub exit: Exit,
    /// The kernel's OOM killer struck in its container.
    pub oom_killed: bool,
}

/// A process.
#[derive(Debug)]
pub struct Process {
    name: String,
    phase: Mutex<Phase>,
    handle: OnceLock<Handle>,
    console: OnceLock<OwnedFd>,
    pumps: OnceLock<Pumps>,
    ended: watch::Sender<Option<Ended>>,
}

/// The kernel's names for a process.
#[derive(Debug)]
struct Handle {
    pid: Pid,
    /// Names the process even after another has its pid.
    pidfd: OwnedFd,
}

impl Process {
    /// A process that does not exist yet; `name` goes into errors.
    #[must_use]
    pub fn new(name: String, phase: Phase) -> Arc<Self> {
        Arc::new(Self {
            name,
            phase: Mutex::new(phase),
            handle: OnceLock::new(),
            console: OnceLock::new(),
            pumps: OnceLock::new(),
            ended: watch::Sender::new(None),
        })
    }

    /// What it is called in errors.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its state.
    #[must_use]
    pub fn phase(&self) -> Phase {
        *self.lock()
    }

    /// Moves on, from one of the states given only.
    ///
    /// # Errors
    ///
    /// [`AgentError::WrongState`].
    pub fn advance(&self, from: &[Phase], to: Phase) -> Result<()> {
        let mut phase = self.lock();
        if !from.contains(&phase) {
            return Err(AgentError::WrongState(format!("{} is {}", self.name, phase.word())));
        }
        *phase = to;
        Ok(())
    }

    /// Gives it its pid. Must be called before the process can have been reaped.
    ///
    /// # Errors
    ///
    /// When the kernel refuses a pidfd.
    pub fn born(&self, pid: Pid) -> Result<()> {
        let pidfd =
            pidfd_open(pid, PidfdFlags::empty()).attempt(|| format!("open the process of {}", self.name))?;
        let _ = self.handle.set(Handle { pid, pidfd });
        Ok(())
    }

    /// Gives it its terminal's master side.
    pub fn set_console(&self, master: OwnedFd) {
        let _ = self.console.set(master);
    }

    /// Its terminal's master side.
    #[must_use]
    pub fn console(&self) -> Option<&OwnedFd> {
        self.console.get()
    }

    /// Gives it its pumps.
    pub fn set_pumps(&self, pumps: Pumps) {
        let _ = self.pumps.set(pumps);
    }

    /// Lets its streams run dry and close.
    pub fn finish_streams(&self) {
        if let Some(pumps) = self.pumps.get() {
            pumps.finish();
        }
    }

    /// Its pid in the guest; `None` before it has one.
    #[must_use]
    pub fn pid(&self) -> Option<Pid> {
        self.handle.get().map(|handle| handle.pid)
    }

    /// Names it even after another has its pid; `None` before it has one.
    #[must_use]
    pub fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        self.handle.get().map(|handle| handle.pidfd.as_fd())
    }

    /// Notes that it ended. Only the first call counts.
    pub fn end(&self, ended: Ended) {
        let mut phase = self.lock();
        if *phase < Phase::Stopped {
            *phase = Phase::Stopped;
        }
        drop(phase);
        self.ended.send_if_modified(|current| {
            let first = current.is_none();
            if first {
                *current = Some(ended);
            }
            first
        });
    }

    /// How it ended, once it has.
    pub async fn wait(&self) -> Result<Ended> {
        let mut ended = self.ended.subscribe();
        let ended = ended.wait_for(Option::is_some).await;
        ended
            .ok()
            .and_then(|ended| *ended)
            .ok_or_else(|| AgentError::NotFound(format!("{} was deleted", self.name)))
    }

    /// How it ended, if it has.
    #[must_use]
    pub fn ended(&self) -> Option<Ended> {
        *self.ended.borrow()
    }

    /// Sends it a signal.
    ///
    /// # Errors
    ///
    /// [`AgentError::NotFound`] when it has ended, [`AgentError::WrongState`] when it has not begun.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        if self.phase() >= Phase::Stopped {
            return Err(self.finished());
        }
        let Some(handle) = self.handle.get() else {
            return Err(AgentError::WrongState(format!("{} has no process yet", self.name)));
        };
        match pidfd_send_signal(&handle.pidfd, signal) {
            Err(rustix::io::Errno::SRCH) => Err(self.finished()),
            sent => sent.attempt(|| format!("send signal {} to {}", signal.as_raw(), self.name)),
        }
    }

    fn finished(&self) -> AgentError {
        AgentError::NotFound(format!("{}: process already finished", self.name))
    }

    /// Changes its terminal's size.
    ///
    /// # Errors
    ///
    /// [`AgentError::WrongState`] when it has no terminal.
    pub fn resize(&self, columns: u32, rows: u32) -> Result<()> {
        let Some(console) = self.console() else {
            return Err(AgentError::WrongState(format!("{} has no terminal", self.name)));
        };
        let clip = |length| u16::try_from(length).unwrap_or(u16::MAX);
        let size = Winsize { ws_col: clip(columns), ws_row: clip(rows), ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(console, size).attempt(|| format!("resize the terminal of {}", self.name))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Phase> {
        lock(&self.phase)
    }
}

/// A signal by number.
///
/// # Errors
///
/// [`AgentError::Invalid`] for what is none.
pub fn signal(number: u32) -> Result<Signal> {
    i32::try_from(number)
        .ok()
        // SAFETY: the C library's own use of its first realtime signals, which is what makes other numbers
        // unsafe, concerns this process; these signals go to others.
        .and_then(|number| (1..=64).contains(&number).then(|| unsafe { Signal::from_raw_unchecked(number) }))
        .ok_or_else(|| AgentError::Invalid(format!("there is no signal {number}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(status: u32) -> Ended {
        Ended { exit: Exit { status, at_unix_nanos: 1 }, oom_killed: false }
    }

    #[test]
    fn states_only_follow_one_another_as_allowed() {
        let process = Process::new("exec e".into(), Phase::Created);
        process.advance(&[Phase::Created], Phase::Starting).unwrap();
        let refused = process.advance(&[Phase::Created], Phase::Starting).unwrap_err();
        assert_eq!(refused.to_string(), "exec e is being started");
        process.end(ended(3));
        assert_eq!(process.phase(), Phase::Stopped);
        process.advance(&[Phase::Stopped], Phase::Deleting).unwrap();
        process.end(ended(4));
        assert_eq!(process.phase(), Phase::Deleting);
        assert_eq!(process.ended(), Some(ended(3)));
    }

    #[tokio::test]
    async fn wait_answers_before_and_after_the_end() {
        let process = Process::new("c".into(), Phase::Running);
        let waiting = tokio::spawn({
            let process = Arc::clone(&process);
            async move { process.wait().await.unwrap() }
        });
        tokio::task::yield_now().await;
        process.end(ended(7));
        assert_eq!(waiting.await.unwrap(), ended(7));
        assert_eq!(process.wait().await.unwrap(), ended(7));
    }

    #[test]
    fn signals_reach_only_living_processes() {
        let process = Process::new("c".into(), Phase::Created);
        assert!(matches!(process.signal(Signal::TERM), Err(AgentError::WrongState(_))));
        process.end(ended(0));
        assert!(matches!(process.signal(Signal::TERM), Err(AgentError::NotFound(_))));
        assert!(signal(0).is_err() && signal(65).is_err() && signal(34).is_ok());
    }
}
