//! Where processors wait: while the machine is paused, and for a device's reset.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::sync::lock;

/// A gate that all processors pass between two runs of the guest.
#[derive(Debug, Default)]
pub struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    closed: bool,
    over: bool,
    running: usize,
    resting: usize,
}

/// What a processor does after the gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passed {
    /// Goes on.
    Straight,
    /// Goes on, after it stood still.
    Rested,
    /// Ends.
    Over,
}

impl Gate {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// A processor starts.
    pub fn enter(&self) {
        self.lock().running += 1;
    }

    /// A processor has ended.
    pub fn leave(&self) {
        self.lock().running -= 1;
        self.changed.notify_all();
    }

    /// Processors stand still when they come by; the caller sees to it that they do.
    pub fn close(&self) {
        self.lock().closed = true;
        // For those that wait for a device.
        self.changed.notify_all();
    }

    /// Processors pass again.
    pub fn open(&self) {
        self.lock().closed = false;
        self.changed.notify_all();
    }

    /// Processors end when they come by; the caller sees to it that they do.
    pub fn end(&self) {
        self.lock().over = true;
        self.changed.notify_all();
    }

    /// Waits until no processor is left, for `limit` at most; whether none is.
    pub fn wait_for_end(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let mut state = self.lock();
        while state.running > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Whether the gate is closed and all processors stand still.
    pub fn is_at_rest(&self) -> bool {
        let state = self.lock();
        state.closed && state.resting == state.running
    }

    /// A processor comes by. `last` is called when it is the last that comes to rest.
    pub fn pass(&self, last: impl Fn()) -> Passed {
        self.rest(self.lock(), &last).1
    }

    /// A processor comes by that may not go on until `done`, however long that takes: it can be paused and ended meanwhile,
    /// as in the guest. Whoever makes `done` true calls [`Gate::look_again`].
    pub fn wait(&self, done: impl Fn() -> bool, last: impl Fn()) -> Passed {
        let mut passed = Passed::Straight;
        let mut state = self.lock();
        loop {
            let rested;
            (state, rested) = self.rest(state, &last);
            match rested {
                Passed::Over => return Passed::Over,
                Passed::Rested => passed = Passed::Rested,
                Passed::Straight => {}
            }
            if done() {
                return passed;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// What a processor may wait for has perhaps happened.
    pub fn look_again(&self) {
        // Whoever has just looked and is about to wait holds the lock until it does.
        drop(self.lock());
        self.changed.notify_all();
    }

    fn rest<'a>(
        &self,
        mut state: MutexGuard<'a, State>,
        last: &impl Fn(),
    ) -> (MutexGuard<'a, State>, Passed) {
        let mut passed = Passed::Straight;
        while state.closed && !state.over {
            passed = Passed::Rested;
            state.resting += 1;
            if state.resting == state.running {
                last();
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.resting -= 1;
        }
        if state.over {
            passed = Passed::Over;
        }
        (state, passed)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    fn until(condition: impl Fn() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !condition() {
            assert!(Instant::now() < deadline);
            std::thread::yield_now();
        }
    }

    #[test]
    fn who_waits_for_a_device_can_stand_still_meanwhile_and_is_let_go_when_it_is_done() {
        let gate = Arc::new(Gate::default());
        let (done, rests) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        gate.enter();
        let processor = std::thread::spawn({
            let (gate, done, rests) = (Arc::clone(&gate), Arc::clone(&done), Arc::clone(&rests));
            move || {
                let rest = || {
                    rests.fetch_add(1, Ordering::SeqCst);
                };
                gate.wait(|| done.load(Ordering::SeqCst), rest)
            }
        });
        gate.close();
        until(|| rests.load(Ordering::SeqCst) > 0 && gate.is_at_rest());
        done.store(true, Ordering::SeqCst);
        gate.look_again();
        assert!(!processor.is_finished(), "a paused processor does not go on, whatever it waited for");
        gate.open();
        assert_eq!(processor.join().unwrap(), Passed::Rested);
    }

    #[test]
    fn waiting_ends_with_the_machine() {
        let gate = Gate::default();
        gate.enter();
        gate.end();
        assert_eq!(gate.wait(|| false, || {}), Passed::Over);
        assert_eq!(gate.pass(|| {}), Passed::Over);
        assert!(!gate.wait_for_end(Duration::from_millis(1)));
        gate.leave();
        assert!(gate.wait_for_end(Duration::ZERO));
    }
}
