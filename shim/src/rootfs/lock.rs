//! Locks by name, shared by all shims of the node.
//!
//! A name is one byte, at the place that its hash says, of one lock file. The kernel drops a lock when the last copy of
//! its file descriptor is closed, however the process ends, and there are no lock files to clean up.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use sha2::{Digest, Sha256};

/// A held lock.
#[derive(Debug)]
pub(super) struct Lock {
    pub file: File,
}

/// Waits for the lock on `name`. Blocks.
pub(super) fn acquire(directory: &Path, name: &str) -> io::Result<Lock> {
    let file = open(directory)?;
    loop {
        match set(&file, name, libc::F_OFD_SETLKW) {
            Ok(()) => return Ok(Lock { file }),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Takes the lock on `name` if nobody has it.
pub(super) fn try_acquire(directory: &Path, name: &str) -> io::Result<Option<Lock>> {
    let file = open(directory)?;
    match set(&file, name, libc::F_OFD_SETLK) {
        Ok(()) => Ok(Some(Lock { file })),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(None),
        Err(error) => Err(error),
    }
}

fn open(directory: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(directory.join("lock"))
}

fn set(file: &File, name: &str, command: libc::c_int) -> io::Result<()> {
    let hash = Sha256::digest(name.as_bytes());
    let place = hash.iter().take(8).fold(0_u64, |place, byte| (place << 8) | u64::from(*byte));
    // SAFETY: flock is plain data for which all zeros is valid.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = libc::F_WRLCK as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    lock.l_start = (place >> 2).cast_signed();
    lock.l_len = 1;
    // SAFETY: `lock` outlives the call, and the kernel only reads it for these commands.
    if unsafe { libc::fcntl(file.as_raw_fd(), command, &raw const lock) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
