//! The file system that the process sees: an empty one.

use rustix::fs::Mode;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};

use super::{JailError, failed};

/// Exchanges the root for an empty, unwritable file system.
pub(super) fn empty() -> Result<(), JailError> {
    // A directory that every host has; only this process sees what is mounted on it.
    const PLACE: &str = "/proc";
    rustix::mount::mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)
        .map_err(failed("detach from the host's mounts"))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount("none", PLACE, "tmpfs", flags, Some(c"size=4k,nr_inodes=2,mode=0555"))
        .map_err(failed("mount an empty file system"))?;
    rustix::process::chdir(PLACE).map_err(failed("enter the empty file system"))?;
    rustix::process::pivot_root(".", ".").map_err(failed("make the empty file system the root"))?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).map_err(failed("leave the host's file systems"))?;
    rustix::process::chdir("/").map_err(failed("enter the new root"))?;
    rustix::mount::mount_remount("/", flags | MountFlags::RDONLY, "")
        .map_err(failed("make the new root unwritable"))?;
    rustix::process::umask(Mode::from_raw_mode(0o777));
    Ok(())
}
