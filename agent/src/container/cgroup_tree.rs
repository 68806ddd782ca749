//! The cgroups below a container's own, which its processes may make.
//!
//! They are walked by descriptors: whoever makes one in another, each with a long name, has soon made one that no path can
//! name any more. How deep they go and how many they are, the pod's cgroup limits (`init/cgroups.rs`).

use std::ffi::CString;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, openat, unlinkat};
use rustix::io::{Errno, Result};
use rustix::path::Arg;

/// Opens a cgroup.
///
/// # Errors
///
/// When the kernel refuses.
pub fn open(cgroup: &Path) -> Result<OwnedFd> {
    open_at(CWD, cgroup)
}

/// The processes of a cgroup and of those below it.
///
/// # Errors
///
/// When the kernel refuses to list them.
pub fn pids(cgroup: &OwnedFd) -> Result<Vec<u32>> {
    let mut pids = Vec::new();
    let procs = openat(cgroup, c"cgroup.procs", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    let mut text = String::new();
    // One that has just gone has none.
    if procs.is_ok_and(|procs| File::from(procs).read_to_string(&mut text).is_ok()) {
        pids.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
    }
    for name in below(cgroup)? {
        if let Some(child) = unless_gone(open_at(cgroup, &name))? {
            pids.extend(unless_gone(self::pids(&child))?.unwrap_or_default());
        }
    }
    Ok(pids)
}

/// Removes all cgroups below one.
///
/// # Errors
///
/// While there are processes in one of them.
pub fn remove_below(cgroup: &OwnedFd) -> Result<()> {
    for name in below(cgroup)? {
        let Some(child) = unless_gone(open_at(cgroup, &name))? else { continue };
        unless_gone(remove_below(&child))?;
        unless_gone(unlinkat(cgroup, &name, AtFlags::REMOVEDIR))?;
    }
    Ok(())
}

fn open_at(parent: impl AsFd, name: impl Arg) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(parent, name, flags, Mode::empty())
}

/// The names of the cgroups right below one.
fn below(cgroup: &OwnedFd) -> Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(cgroup)? {
        let entry = entry?;
        let name = entry.file_name();
        if entry.file_type() == FileType::Directory && name != c"." && name != c".." {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

/// Processes remove cgroups too.
fn unless_gone<T>(done: Result<T>) -> Result<Option<T>> {
    match done {
        Err(Errno::NOENT | Errno::NODEV) => Ok(None),
        done => done.map(Some),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rustix::fs::mkdirat;

    use super::*;

    #[test]
    fn what_lies_deeper_than_a_path_can_name_is_found_and_removed() {
        let top = tempfile::tempdir().unwrap();
        let name = CString::new("x".repeat(255)).unwrap();
        let mut here = open(top.path()).unwrap();
        for depth in 0..30 {
            mkdirat(&here, c"other", Mode::RWXU).unwrap();
            mkdirat(&here, &name, Mode::RWXU).unwrap();
            here = open_at(&here, &name).unwrap();
            assert!(depth > 0 || top.path().join("other").is_dir());
        }
        // A file in a cgroup's place makes its removal fail, as a process does.
        let flags = OFlags::CREATE | OFlags::WRONLY;
        let procs = openat(&here, c"cgroup.procs", flags, Mode::RWXU).unwrap();
        rustix::io::write(&procs, b"7\n").unwrap();
        let cgroup = open(top.path()).unwrap();
        assert_eq!(pids(&cgroup).unwrap(), [7]);
        assert_eq!(remove_below(&cgroup), Err(Errno::NOTEMPTY));
        unlinkat(&here, c"cgroup.procs", AtFlags::empty()).unwrap();
        remove_below(&cgroup).unwrap();
        assert_eq!(fs::read_dir(top.path()).unwrap().count(), 0);
    }

    #[test]
    fn processes_of_all_cgroups_are_listed() {
        let top = tempfile::tempdir().unwrap();
        fs::create_dir_all(top.path().join("a/deep")).unwrap();
        fs::create_dir(top.path().join("b")).unwrap();
        fs::write(top.path().join("cgroup.procs"), "7\n").unwrap();
        fs::write(top.path().join("a/deep/cgroup.procs"), "8\nx\n9\n").unwrap();
        let mut pids = pids(&open(top.path()).unwrap()).unwrap();
        pids.sort_unstable();
        assert_eq!(pids, [7, 8, 9]);
    }
}
