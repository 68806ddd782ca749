//! What can be changed of a mount by a descriptor of it (`mount_setattr(2)`).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

/// Makes a mount read-only, and what is in it neither a device nor a way to other privileges.
///
/// # Errors
///
/// When the kernel refuses.
pub fn make_readonly(tree: &OwnedFd) -> io::Result<()> {
    let mut attributes = none();
    attributes.attr_set = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
    set(tree, &attributes)
}

/// Gives a mount that is in no namespace yet the mapping of a user namespace.
///
/// # Errors
///
/// When the kernel refuses, above all for a file system that does not know such mounts.
pub fn map_ids(tree: &OwnedFd, user: BorrowedFd<'_>) -> io::Result<()> {
    let mut attributes = none();
    attributes.attr_set = libc::MOUNT_ATTR_IDMAP;
    attributes.userns_fd = user.as_raw_fd().unsigned_abs().into();
    set(tree, &attributes)
}

fn none() -> libc::mount_attr {
    // SAFETY: all-zero is a valid value of this plain structure.
    unsafe { std::mem::zeroed() }
}

fn set(tree: &OwnedFd, attributes: &libc::mount_attr) -> io::Result<()> {
    // SAFETY: the path is NUL-terminated, and `attributes`, whose size is told, lives through the call.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            std::ptr::from_ref(attributes),
            size_of::<libc::mount_attr>(),
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
