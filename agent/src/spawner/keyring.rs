//! A container's session keyring, as runc gives it: keys that its processes add are not within reach of others that happen
//! to have the same user id.

use std::ffi::CString;
use std::io;

/// Makes the keyring of container `id` the calling process's, and that of the processes it makes; it comes to be with the first
/// who joins it. A kernel without keyrings is none the worse for it.
///
/// # Errors
///
/// When the kernel refuses.
pub(super) fn join(id: &str) -> io::Result<()> {
    /// What a named keyring has from its birth, and that its owner, root, may find it again by its name.
    const FOUND_BY_OWNER: libc::c_long = 0x3f1b_0000;
    let name = CString::new(format!("_ses.{id}"))?;
    // SAFETY: the name is NUL-terminated and lives through the call.
    let ring = unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_JOIN_SESSION_KEYRING, name.as_ptr()) };
    if ring == -1 {
        let error = io::Error::last_os_error();
        return if error.raw_os_error() == Some(libc::ENOSYS) { Ok(()) } else { Err(error) };
    }
    // SAFETY: the call takes plain numbers.
    match unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_SETPERM, ring, FOUND_BY_OWNER) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
