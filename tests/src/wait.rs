//! Waiting for conditions. Nothing in these tests sleeps for a fixed time: the hosts they run on may be fifty times
//! slower than silicon.

use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long a test waits for something that must happen.
pub const PATIENCE: Duration = Duration::from_secs(480);

/// Polls `look` until it yields something, and panics with `what` after [`PATIENCE`].
#[track_caller]
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    match until(PATIENCE, &mut look) {
        Some(found) => found,
        None => panic!("waited {} s in vain for: {what}", PATIENCE.as_secs()),
    }
}

/// Polls `look` until it yields something or `limit` has passed.
pub fn until<T>(limit: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + limit;
    let mut pause = Duration::from_millis(20);
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if Instant::now() >= end {
            return None;
        }
        sleep(pause);
        // A look is often a program that is run: on a slow host, many of them would hold up what they wait for.
        pause = (pause * 3 / 2).min(Duration::from_secs(1));
    }
}
