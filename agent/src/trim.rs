//! Gives the scratch disk's free space back to the host: what a pod has deleted must not stay on the node's disk.
//!
//! The disk is trimmed when enough has been freed, not at each deletion (`mount -o discard`): deleting many small files
//! would cost a request each.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

use crate::agent::blocking;
use crate::error::Attempt;

/// How often the free space is looked at.
const PERIOD: Duration = Duration::from_secs(30);
/// Bytes that must have been freed to be worth a trim.
const WORTH: u64 = 16 << 20;
/// Shortest run of free bytes that is given back.
const SHORTEST: u64 = 64 << 10;

/// Trims the file system at `path` whenever enough of it has been freed, for ever.
pub async fn keep_trimmed(path: &'static str) {
    let mut free = Free::default();
    loop {
        tokio::time::sleep(PERIOD).await;
        let Ok(now) = rustix::fs::statvfs(path) else { continue };
        if !free.freed_enough(now.f_bfree.saturating_mul(now.f_frsize)) {
            continue;
        }
        let trimmed = blocking(move || trim(Path::new(path)).attempt(|| format!("trim {path}"))).await;
        if let Err(error) = trimmed {
            crate::log!("{error}");
        }
    }
}

/// What was free, in bytes.
#[derive(Debug, Default)]
struct Free {
    /// The least since the last trim.
    least: Option<u64>,
}

impl Free {
    /// Notes what is free now; true when a trim is due.
    fn freed_enough(&mut self, now: u64) -> bool {
        let least = self.least.map_or(now, |least| least.min(now));
        let due = now - least >= WORTH;
        self.least = Some(if due { now } else { least });
        due
    }
}

/// FITRIM of the whole file system (`ioctl_fitrim`, linux/fs.h).
fn trim(path: &Path) -> io::Result<()> {
    #[repr(C)]
    struct Range {
        start: u64,
        length: u64,
        shortest: u64,
    }
    /// `_IOWR('X', 121, struct fstrim_range)`.
    const FITRIM: libc::c_ulong = 0xc018_5879;
    let directory = File::open(path)?;
    let mut range = Range { start: 0, length: u64::MAX, shortest: SHORTEST };
    // SAFETY: FITRIM reads and writes a `fstrim_range`, which `range` is, and it lives through the call.
    let done = unsafe { libc::ioctl(directory.as_raw_fd(), FITRIM as _, &raw mut range) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trim_is_due_when_enough_has_been_freed_since_the_last() {
        let mut free = Free::default();
        assert!(!free.freed_enough(10 * WORTH));
        assert!(!free.freed_enough(5 * WORTH));
        assert!(!free.freed_enough(6 * WORTH - 1));
        assert!(free.freed_enough(6 * WORTH));
        assert!(!free.freed_enough(6 * WORTH));
    }
}
