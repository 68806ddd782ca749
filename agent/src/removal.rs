//! Removes trees of files that containers made, or may still change: however deep they are, and whatever is put in the place of
//! a directory meanwhile.

use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, RenameFlags, openat, renameat_with, unlinkat};
use rustix::io::{Errno, Result};

/// Removes what has a name in a directory, which may be nothing.
///
/// Directories in it are moved up to `home` one by one, so that neither the stack nor the descriptors that are open grow with its
/// depth, and are entered by descriptors, so that no link in their place is followed.
///
/// # Errors
///
/// The first thing that cannot be removed; what can be is gone all the same.
pub fn remove(home: impl AsFd, name: &OsStr) -> Result<()> {
    let home = home.as_fd();
    let name = CString::new(name.as_bytes()).map_err(|_| Errno::INVAL)?;
    let mut failed = Ok(());
    let mut left = vec![name];
    while let Some(name) = left.pop() {
        match unlinkat(home, &name, AtFlags::empty()) {
            Err(Errno::ISDIR) => {}
            Ok(()) | Err(Errno::NOENT) => continue,
            Err(errno) => {
                failed = failed.and(Err(errno));
                continue;
            }
        }
        let emptied = enter(home, &name).and_then(|directory| empty(&directory, home, &mut left));
        let removed = match unlinkat(home, &name, AtFlags::REMOVEDIR) {
            Err(Errno::NOENT) => Ok(()),
            removed => removed,
        };
        failed = failed.and(emptied).and(removed);
    }
    failed
}

/// Removes the files of a directory and moves its directories to `home`, where they are `left` to be removed.
fn empty(directory: &OwnedFd, home: impl AsFd, left: &mut Vec<CString>) -> Result<()> {
    let mut failed = Ok(());
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let moved = if entry.file_type() == FileType::Directory {
            move_up(directory, name, &home).map(|name| left.push(name))
        } else {
            unlinkat(directory, name, AtFlags::empty())
        };
        failed = failed.and(moved);
    }
    failed
}

fn move_up(directory: &OwnedFd, name: &CStr, home: impl AsFd) -> Result<CString> {
    /// How many names somebody else may have taken.
    const TRIES: u32 = 64;
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let mut moved = Err(Errno::EXIST);
    for _ in 0..TRIES {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let flat = CString::new(format!("..gone-{number}")).map_err(|_| Errno::INVAL)?;
        moved = renameat_with(directory, name, &home, &flat, RenameFlags::NOREPLACE).map(|()| flat);
        if !matches!(moved, Err(Errno::EXIST)) {
            break;
        }
    }
    moved
}

fn enter(home: impl AsFd, name: &CStr) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(home, name, flags, Mode::empty())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use rustix::fs::{CWD, mkdirat, open};

    use super::*;

    fn directory(path: &std::path::Path) -> OwnedFd {
        open(path, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap()
    }

    #[test]
    fn a_tree_of_any_depth_and_width_is_removed() {
        let home = tempfile::tempdir().unwrap();
        let tree = home.path().join("tree");
        fs::create_dir_all(tree.join("wide")).unwrap();
        for name in 0..100 {
            fs::create_dir(tree.join(format!("wide/{name}"))).unwrap();
            symlink("/etc", tree.join(format!("wide/{name}/link"))).unwrap();
        }
        // Deeper than any path can name, and than a stack has room for.
        let mut at = directory(&tree);
        for _ in 0..20_000 {
            mkdirat(&at, "d", Mode::RWXU).unwrap();
            at = openat(&at, "d", OFlags::PATH, Mode::empty()).unwrap();
        }
        remove(directory(home.path()), OsStr::new("tree")).unwrap();
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0);
        assert!(fs::exists("/etc/passwd").unwrap());
    }

    #[test]
    fn a_file_a_link_and_nothing_are_removed_too() {
        let home = tempfile::tempdir().unwrap();
        let kept = tempfile::tempdir().unwrap();
        fs::write(kept.path().join("file"), "").unwrap();
        fs::write(home.path().join("file"), "").unwrap();
        symlink(kept.path(), home.path().join("link")).unwrap();
        for name in ["file", "link", "nothing"] {
            remove(directory(home.path()), OsStr::new(name)).unwrap();
        }
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0);
        assert!(kept.path().join("file").exists());
    }

    #[test]
    fn a_link_in_a_directorys_place_is_not_entered() {
        let (home, kept) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        symlink(kept.path(), home.path().join("link")).unwrap();
        assert_eq!(enter(directory(home.path()), c"link").unwrap_err(), Errno::NOTDIR);
        assert_eq!(enter(CWD, c"/proc/self/cwd").unwrap_err(), Errno::NOTDIR);
    }

    #[test]
    fn names_that_others_have_taken_are_left_to_them() {
        let home = tempfile::tempdir().unwrap();
        fs::create_dir_all(home.path().join("tree/below/deeper")).unwrap();
        for number in 0..40 {
            fs::create_dir_all(home.path().join(format!("..gone-{number}/full"))).unwrap();
        }
        remove(directory(home.path()), OsStr::new("tree")).unwrap();
        assert!(!home.path().join("tree").exists());
        assert!(home.path().join("..gone-7/full").exists());
    }
}
