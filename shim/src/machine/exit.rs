use std::fmt;

use ravelin_vmm::control::ExitReason;
use rustix::process::WaitIdStatus;
use tokio::sync::watch;

/// How a machine's process ended, as the host's kernel tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// By itself, for a reason of its own.
    Ended(ExitReason),
    /// By a signal; 9 is the usual one when the host ran out of memory.
    Signal(i32),
    /// With a status that is no [`ExitReason`].
    Status(i32),
}

impl Exit {
    /// Reads a process's exit status.
    #[must_use]
    pub fn from_status(status: &WaitIdStatus) -> Self {
        if let Some(signal) = status.terminating_signal() {
            return Self::Signal(signal);
        }
        let code = status.exit_status().unwrap_or(-1);
        const ALL: [ExitReason; 7] = [
            ExitReason::PowerOff,
            ExitReason::Stopped,
            ExitReason::Error,
            ExitReason::Reboot,
            ExitReason::Panic,
            ExitReason::TripleFault,
            ExitReason::Forbidden,
        ];
        ALL.into_iter()
            .find(|reason| i32::from(reason.code()) == code)
            .map_or(Self::Status(code), Self::Ended)
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ended(ExitReason::PowerOff) => f.write_str("the guest powered off"),
            Self::Ended(ExitReason::Reboot) => f.write_str("the guest asked for a reboot"),
            Self::Ended(ExitReason::Panic) => {
                f.write_str("the guest kernel panicked (its last messages are in the shim's log)")
            }
            Self::Ended(ExitReason::TripleFault) => f.write_str("the guest's processor triple-faulted"),
            Self::Ended(ExitReason::Forbidden) => {
                f.write_str("it made a system call that it may not make (see the shim's log)")
            }
            Self::Ended(ExitReason::Stopped) => f.write_str("it was stopped"),
            Self::Ended(ExitReason::Error) => f.write_str("a device or KVM failed (see the shim's log)"),
            Self::Signal(libc::SIGSYS) => {
                f.write_str("killed by the node's kernel for a system call that it may not make")
            }
            Self::Signal(signal) => write!(f, "killed by signal {signal}"),
            Self::Status(status) => write!(f, "exit status {status}"),
        }
    }
}

/// Waits until `exit` holds a value. If the task that would set it is gone, the runtime is ending.
pub(super) async fn ended(exit: &mut watch::Receiver<Option<Exit>>) -> Exit {
    match exit.wait_for(Option::is_some).await {
        Ok(value) => value.unwrap_or(Exit::Status(-1)),
        Err(_) => Exit::Status(-1),
    }
}
