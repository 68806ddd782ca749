//! The guest's wall clock, which follows the host's.

use std::time::{Duration, SystemTime};

use rustix::time::{ClockId, Timespec, clock_settime};

use crate::error::{Attempt, Result};

/// A clock that is off by this much is stepped: slewing (at half a millisecond a second) would take too long.
const STEP: Duration = Duration::from_millis(500);
/// A difference below this is the message's own travel.
const TRAVEL: Duration = Duration::from_millis(5);

/// Steps the clock.
///
/// # Errors
///
/// When the kernel refuses.
pub fn step(unix_nanos: u64) -> Result<()> {
    let time = Duration::from_nanos(unix_nanos);
    let time = Timespec {
        tv_sec: time.as_secs().try_into().unwrap_or(i64::MAX),
        tv_nsec: time.subsec_nanos().into(),
    };
    clock_settime(ClockId::Realtime, time).attempt(|| format!("set the clock to {unix_nanos} ns"))
}

/// Brings the clock to the host's time: small differences without a step, so that time does not run backwards.
///
/// # Errors
///
/// When the kernel refuses.
pub fn correct(unix_nanos: u64) -> Result<()> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let host = Duration::from_nanos(unix_nanos);
    let (off, behind) = if host > now { (host - now, true) } else { (now - host, false) };
    if off < TRAVEL {
        return Ok(());
    }
    if off >= STEP {
        return step(unix_nanos);
    }
    let micros = i64::try_from(off.as_micros()).unwrap_or(i64::MAX);
    let delta = libc::timeval { tv_sec: 0, tv_usec: if behind { micros } else { -micros } };
    // SAFETY: `delta` lives through the call; nothing is asked back. A negative part of a second is as the call wants it.
    let done = unsafe { libc::adjtime(&raw const delta, std::ptr::null_mut()) };
    let done = if done == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) };
    done.attempt(|| format!("slew the clock by {} us", delta.tv_usec))
}
