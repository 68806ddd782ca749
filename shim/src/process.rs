//! A process as containerd sees it: a container's first one, an exec, or the sandbox itself.

use std::time::SystemTime;

use containerd_shim_protos::api::Status;
use tokio::sync::watch;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// As a shell tells it: 0 to 255.
    pub status: u32,
    /// When, by the host's clock.
    pub at: SystemTime,
}

impl Exit {
    /// An end at this moment.
    #[must_use]
    pub fn now(status: u32) -> Self {
        Self { status: status & 0xff, at: SystemTime::now() }
    }
}

/// Where a process is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Made, waiting to be started.
    Created,
    /// Running.
    Running,
    /// Frozen.
    Paused,
    /// Ended.
    Stopped(Exit),
}

impl Phase {
    /// containerd's word for it.
    #[must_use]
    pub fn status(self) -> Status {
        match self {
            Self::Created => Status::CREATED,
            Self::Running => Status::RUNNING,
            Self::Paused => Status::PAUSED,
            Self::Stopped(_) => Status::STOPPED,
        }
    }
}

/// A process's phase, to be looked at and waited for.
#[derive(Debug)]
pub struct Life(watch::Sender<Phase>);

impl Default for Life {
    fn default() -> Self {
        Self(watch::Sender::new(Phase::Created))
    }
}

impl Life {
    /// The phase now.
    #[must_use]
    pub fn phase(&self) -> Phase {
        *self.0.borrow()
    }

    /// The end, if it has come.
    #[must_use]
    pub fn exit(&self) -> Option<Exit> {
        match self.phase() {
            Phase::Stopped(exit) => Some(exit),
            _ => None,
        }
    }

    /// Moves on; an end is final. False if it had come already.
    pub fn set(&self, phase: Phase) -> bool {
        self.0.send_if_modified(|current| {
            let live = !matches!(current, Phase::Stopped(_));
            if live {
                *current = phase;
            }
            live
        })
    }

    /// Waits for the end.
    pub async fn ended(&self) -> Exit {
        let mut receiver = self.0.subscribe();
        loop {
            if let Phase::Stopped(exit) = *receiver.borrow_and_update() {
                return exit;
            }
            // The sender is `self`: it outlives this wait.
            if receiver.changed().await.is_err() {
                return Exit::now(255);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_end_is_final_and_everyone_hears_it() {
        let life = Life::default();
        assert!(life.set(Phase::Running));
        let (first, second) = tokio::join!(life.ended(), async {
            assert!(life.set(Phase::Stopped(Exit::now(3))));
            assert!(!life.set(Phase::Running));
            assert!(!life.set(Phase::Stopped(Exit::now(4))));
            life.ended().await
        });
        assert_eq!((first.status, second.status), (3, 3));
        assert_eq!(life.phase().status(), Status::STOPPED);
    }
}
