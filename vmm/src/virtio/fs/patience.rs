//! Requests for which the node has no memory are sent again after a pause, in which the device goes on with all else.

use std::io;
use std::os::fd::OwnedFd;

use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};

use super::QUEUES;
use crate::event::Registrar;

/// How often a request is sent again, and after how many nanoseconds: as a file server does with a reply.
const TRIES: u32 = 50;
/// See [`TRIES`].
const PAUSE: i64 = 10_000_000;

/// How long the device bears with a node that has no memory.
#[derive(Debug, Default)]
pub(super) struct Patience {
    timer: Option<OwnedFd>,
    pausing: bool,
    /// How often the first request of each queue was put off.
    tries: [u32; QUEUES],
}

impl Patience {
    /// One whose pauses end with a report of `token`.
    pub fn new(registrar: &Registrar, token: u32) -> io::Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags)?;
        registrar.add_readable(&timer, token)?;
        Ok(Self { timer: Some(timer), ..Self::default() })
    }

    /// Whether nothing is to be sent yet.
    pub fn is_pausing(&self) -> bool {
        self.pausing
    }

    /// There is no memory for the first request of a queue. Begins a pause, after which it is to be sent again; false if that was
    /// done often enough.
    pub fn put_off(&mut self, queue: usize) -> bool {
        let (Some(timer), Some(tries)) = (&self.timer, self.tries.get_mut(queue)) else { return false };
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let setting = Itimerspec { it_interval: zero, it_value: Timespec { tv_sec: 0, tv_nsec: PAUSE } };
        let begun = *tries < TRIES
            && rustix::time::timerfd_settime(timer, TimerfdTimerFlags::empty(), &setting).is_ok();
        if begun {
            *tries += 1;
            self.pausing = true;
        }
        begun
    }

    /// The first request of a queue was sent, or has failed.
    pub fn is_done(&mut self, queue: usize) {
        if let Some(tries) = self.tries.get_mut(queue) {
            *tries = 0;
        }
    }

    /// The pause is over.
    pub fn go_on(&mut self) {
        if let Some(timer) = &self.timer {
            let _ = rustix::io::read(timer, &mut [0; 8]);
        }
        self.pausing = false;
    }

    /// Nothing is waiting to be sent any longer.
    pub fn forget(&mut self) {
        self.pausing = false;
        self.tries = [0; QUEUES];
    }
}
