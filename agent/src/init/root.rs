//! The way from the initial RAM file system to a root that containers can pivot away from.

use std::fs;
use std::path::Path;

use rustix::mount::{MountFlags, mount, mount_move};
use rustix::process::{chdir, chroot};

use crate::error::{Attempt, Result};

/// Leaves the initial RAM file system for a tmpfs root with the kernel's file systems mounted.
///
/// The kernel refuses `pivot_root` while the root is the initial one. That one stays below, empty: not even the
/// agent's own executable has a name any more.
pub(super) fn enter() -> Result<()> {
    let new = Path::new("/newroot");
    make_dir(new)?;
    mount("root", new, c"tmpfs", MountFlags::empty(), Some(c"mode=0755"))
        .attempt(|| "mount the new root".to_owned())?;
    let none = MountFlags::NOSUID | MountFlags::NOEXEC | MountFlags::NODEV;
    for (kind, dir, flags, data) in [
        (c"proc", "proc", none, None),
        (c"sysfs", "sys", none, None),
        (c"devtmpfs", "dev", MountFlags::NOSUID, Some(c"mode=0755")),
        (c"devpts", "dev/pts", MountFlags::NOSUID | MountFlags::NOEXEC, Some(c"mode=0620,ptmxmode=0666")),
        // A namespace's root is a boundary: what a container has for limits is not its own to change.
        (c"cgroup2", "sys/fs/cgroup", none, Some(c"nsdelegate,memory_recursiveprot")),
    ] {
        let target = new.join(dir);
        make_dir(&target)?;
        mount(kind, &target, kind, flags, data).attempt(|| format!("mount {}", target.display()))?;
    }
    for dir in ["run", "tmp"] {
        make_dir(&new.join(dir))?;
    }
    empty(Path::new("/"), new)?;
    chdir(new).attempt(|| "enter the new root".to_owned())?;
    mount_move(".", "/").attempt(|| "move the new root over the initial one".to_owned())?;
    chroot(".").attempt(|| "change to the new root".to_owned())?;
    chdir("/").attempt(|| "enter /".to_owned())
}

/// Removes everything in a directory but `kept`.
fn empty(directory: &Path, kept: &Path) -> Result<()> {
    let entries = fs::read_dir(directory).attempt(|| format!("list {}", directory.display()))?;
    for entry in entries {
        let path = entry.attempt(|| format!("list {}", directory.display()))?.path();
        if path == kept {
            continue;
        }
        let removed = if path.is_dir() && !path.is_symlink() {
            fs::remove_dir_all(&path)
        } else {
            fs::remove_file(&path)
        };
        removed.attempt(|| format!("remove {}", path.display()))?;
    }
    Ok(())
}

fn make_dir(path: &Path) -> Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        made => made.attempt(|| format!("create {}", path.display())),
    }
}
