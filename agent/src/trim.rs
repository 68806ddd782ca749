//! Gives the scratch disk's free space back to the host: what a pod has deleted must not stay on the node's disk.
//!
//! The disk is trimmed when there is enough to give back, not at each deletion (`mount -o discard`): deleting many small
//! files would cost a request each.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

use crate::error::{Attempt, Result};
use crate::paths;
use crate::sync::blocking;

/// How often the disk is looked at.
const PERIOD: Duration = Duration::from_secs(30);
/// Bytes that are worth a trim.
const WORTH: u64 = 16 << 20;
/// Shortest run of free bytes that is given back.
const SHORTEST: u64 = 64 << 10;

/// Trims the scratch disk whenever there is enough to give back, for ever.
pub async fn keep_trimmed() {
    let mut watch = Watch::default();
    loop {
        tokio::time::sleep(PERIOD).await;
        let Ok(disk) = blocking(Disk::look).await else { continue };
        if !watch.trim_is_due(&disk) {
            continue;
        }
        if let Err(error) = blocking(trim).await {
            crate::log!("{error}");
        }
    }
}

/// The scratch disk at one moment.
#[derive(Debug)]
struct Disk {
    /// Free bytes of the file system.
    free: u64,
    /// Bytes written to the device since it is there.
    written: u64,
}

impl Disk {
    fn look() -> Result<Self> {
        let attempt = || format!("look at {}", paths::SCRATCH);
        let space = rustix::fs::statvfs(paths::SCRATCH).attempt(attempt)?;
        let name = Path::new(paths::SCRATCH_DISK).file_name().unwrap_or_default();
        let stat = Path::new("/sys/class/block").join(name).join("stat");
        let stat = fs::read_to_string(stat).attempt(attempt)?;
        // The seventh number is the sectors written, of 512 bytes (Documentation/block/stat.rst).
        let sectors: u64 =
            stat.split_ascii_whitespace().nth(6).and_then(|word| word.parse().ok()).unwrap_or(0);
        Ok(Self { free: space.f_bfree.saturating_mul(space.f_frsize), written: sectors.saturating_mul(512) })
    }
}

/// What was seen since the last trim.
#[derive(Debug, Default)]
struct Watch {
    least_free: Option<u64>,
    written: u64,
}

impl Watch {
    /// True when much has been freed since the last trim, or so much written that files may have come and gone between
    /// two looks. The next trim counts from here then.
    fn trim_is_due(&mut self, now: &Disk) -> bool {
        let least = self.least_free.map_or(now.free, |least| least.min(now.free));
        let due = now.free - least >= WORTH || now.written.saturating_sub(self.written) >= WORTH;
        self.least_free = Some(if due { now.free } else { least });
        if due {
            self.written = now.written;
        }
        due
    }
}

/// FITRIM of the whole file system (linux/fs.h).
fn trim() -> Result<()> {
    #[repr(C)]
    struct Range {
        start: u64,
        length: u64,
        shortest: u64,
    }
    /// `_IOWR('X', 121, struct fstrim_range)`.
    const FITRIM: libc::c_ulong = 0xc018_5879;
    let attempt = || format!("trim {}", paths::SCRATCH);
    let directory = File::open(paths::SCRATCH).attempt(attempt)?;
    let mut range = Range { start: 0, length: u64::MAX, shortest: SHORTEST };
    // SAFETY: FITRIM reads and writes a `fstrim_range`, which `range` is, and it lives through the call.
    let done = unsafe { libc::ioctl(directory.as_raw_fd(), FITRIM as _, &raw mut range) };
    let done = if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) };
    done.attempt(attempt)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trim_is_due_when_much_was_freed_or_written_since_the_last() {
        let mut watch = Watch::default();
        let mut due = |free, written| watch.trim_is_due(&Disk { free, written });
        assert!(!due(10 * WORTH, 0));
        assert!(!due(5 * WORTH, 1));
        assert!(!due(6 * WORTH - 1, 2));
        assert!(due(6 * WORTH, 3));
        assert!(!due(6 * WORTH, 4));
        assert!(due(6 * WORTH, WORTH + 3));
        assert!(!due(6 * WORTH, WORTH + 4));
    }
}
