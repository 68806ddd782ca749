//! What was open when the process began.

use std::io;
use std::os::fd::AsRawFd;

use super::{JailError, failed};
use crate::control::CONTROL_FD;

/// Keeps standard input, output and error and the control socket.
pub(super) fn close() -> Result<(), JailError> {
    let first = libc::c_uint::try_from(CONTROL_FD + 1).unwrap_or(4);
    // SAFETY: nothing in this process has opened a descriptor yet.
    if unsafe { libc::close_range(first, libc::c_uint::MAX, 0) } < 0 {
        return Err(failed("close inherited descriptors")(io::Error::last_os_error()));
    }
    Ok(())
}

/// Whether descriptor `fd` is open.
#[must_use]
pub fn is_open(fd: &impl AsRawFd) -> bool {
    // SAFETY: F_GETFD has no argument and fails cleanly on a number that is not open.
    unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFD) >= 0 }
}
