//! Deadlines: an attempt to connect and the end of a connection wait for the guest, but not for ever.

use std::time::{Duration, Instant};

use rustix::time::{Itimerspec, TimerfdTimerFlags, Timespec};

use super::Vsock;

/// Time that the guest has to take the end of a connection, and as much again to take its reset. A busy guest may need
/// some; afterwards the place is free for another connection.
pub(super) const FAREWELL: Duration = Duration::from_secs(120);

impl Vsock {
    /// Fails attempts whose time is over, repeats those whose time has come, and gives up the connections whose end
    /// the guest does not take.
    pub(super) fn expire(&mut self) {
        let now = Instant::now();
        self.rearm = true;
        let due: Vec<u32> = self
            .attempts
            .iter()
            .filter(|(_, attempt)| attempt.next() <= now)
            .map(|(port, _)| *port)
            .collect();
        for port in due {
            self.expire_attempt(port, now);
        }
        let due: Vec<u32> = self
            .streams
            .iter()
            .filter(|(_, stream)| stream.deadline.is_some_and(|deadline| deadline <= now))
            .map(|(port, _)| *port)
            .collect();
        for port in due {
            if let Some(stream) = self.streams.get_mut(&port) {
                stream.guest_is_overdue();
            }
            self.queue_stream(port);
        }
    }

    /// Sets the timer for the next deadline, if there are other deadlines than before.
    pub(super) fn arm(&mut self) {
        if !std::mem::take(&mut self.rearm) && self.attempts.is_empty() {
            return;
        }
        let now = Instant::now();
        let farewell = self.farewell;
        let ends = self.streams.values_mut().filter(|stream| stream.awaits_guest());
        let ends = ends.map(|stream| *stream.deadline.get_or_insert(now + farewell));
        let next = self.attempts.values().map(|attempt| attempt.next()).chain(ends).min();
        let delay = next.map(|next| next.saturating_duration_since(now).max(Duration::from_millis(1)));
        let Some(timer) = &self.timer else { return };
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let value = delay.map_or(zero, |delay| Timespec {
            tv_sec: i64::try_from(delay.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(delay.subsec_nanos()),
        });
        let setting = Itimerspec { it_interval: zero, it_value: value };
        let _ = rustix::time::timerfd_settime(timer, TimerfdTimerFlags::empty(), &setting);
    }
}
