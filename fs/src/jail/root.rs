//! The file system that the process sees: an empty one.

use std::os::fd::OwnedFd;

use rustix::fs::{CWD, Mode};
use rustix::mount::{MountFlags, MountPropagationFlags, OpenTreeFlags, UnmountFlags};

use super::{JailError, failed};

/// Exchanges the root for an empty, unwritable file system. Returns the directory `/proc/self/fd` as a mount of its own that is
/// nowhere in the tree, so that `..` in it is itself.
pub(super) fn leave() -> Result<OwnedFd, JailError> {
    // A directory that every node has; only this process sees what is mounted on it.
    const PLACE: &str = "/proc";
    rustix::mount::mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)
        .map_err(failed("detach from the node's mounts"))?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let descriptors = rustix::mount::open_tree(CWD, "/proc/self/fd", flags)
        .map_err(failed("keep the directory of its own descriptors"))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount("none", PLACE, "tmpfs", flags, Some(c"size=4k,nr_inodes=2,mode=0555"))
        .map_err(failed("mount an empty file system"))?;
    rustix::process::chdir(PLACE).map_err(failed("enter the empty file system"))?;
    rustix::process::pivot_root(".", ".").map_err(failed("make the empty file system the root"))?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).map_err(failed("leave the node's file systems"))?;
    rustix::process::chdir("/").map_err(failed("enter the new root"))?;
    rustix::mount::mount_remount("/", flags | MountFlags::RDONLY, "")
        .map_err(failed("make the new root unwritable"))?;
    rustix::process::umask(Mode::empty());
    Ok(descriptors)
}
