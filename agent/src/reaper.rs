//! The one place that waits for children: as PID 1 the agent inherits every orphan of the guest.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::process::{Pid, WaitOptions, wait};
use tokio::sync::oneshot;

use crate::sync::lock;

/// How and when a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// As a shell tells it: 0 to 255, 128 + signal for a process that a signal ended.
    pub status: u32,
    /// Nanoseconds since the epoch.
    pub at_unix_nanos: u64,
}

impl Exit {
    /// An exit now.
    #[must_use]
    pub fn now(status: u32) -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Self { status, at_unix_nanos: u64::try_from(since.as_nanos()).unwrap_or(u64::MAX) }
    }
}

/// Processes whose exits someone wants to know. Clones share the list.
#[derive(Debug, Clone, Default)]
pub struct Reaper {
    wanted: Arc<Mutex<HashMap<i32, oneshot::Sender<Exit>>>>,
}

impl Reaper {
    /// Starts the thread that reaps. `vital` must never end: if it does, the guest is of no use any more.
    pub fn start(&self, vital: Pid) {
        let reaper = self.clone();
        let thread = std::thread::Builder::new().name("reaper".to_owned()).stack_size(128 << 10);
        if let Err(error) = thread.spawn(move || reaper.run(vital)) {
            crate::log!("cannot start the reaper: {error}");
            std::process::exit(1);
        }
    }

    /// Asks for a process's exit. Must be called before the process can have become the agent's child.
    #[must_use]
    pub fn watch(&self, pid: Pid) -> oneshot::Receiver<Exit> {
        let (sender, receiver) = oneshot::channel();
        lock(&self.wanted).insert(pid.as_raw_nonzero().get(), sender);
        receiver
    }

    fn run(&self, vital: Pid) {
        loop {
            let (pid, status) = match wait(WaitOptions::empty()) {
                Ok(Some(child)) => child,
                Ok(None) | Err(rustix::io::Errno::INTR) => continue,
                Err(_) => {
                    // No child at all; the spawner would be one.
                    crate::log!("the spawner is gone");
                    std::process::exit(1);
                }
            };
            if pid == vital {
                crate::log!("the spawner ended");
                std::process::exit(1);
            }
            let status = match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => code.cast_unsigned() & 0xff,
                (None, Some(signal)) => 128 + (signal.cast_unsigned() & 0x7f),
                (None, None) => continue,
            };
            let wanted = lock(&self.wanted).remove(&pid.as_raw_nonzero().get());
            if let Some(wanted) = wanted {
                // Whoever asked may be gone.
                let _ = wanted.send(Exit::now(status));
            }
        }
    }
}
