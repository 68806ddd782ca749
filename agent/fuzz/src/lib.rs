//! What the targets that make files share.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use ravelin_fuzz::Input;

/// The user who makes a test case's files: one who can write nowhere else, whatever is wrong with what is tested.
pub const NOBODY: u32 = 65534;

/// Does `work` as [`NOBODY`] as far as files go, if this process may become that.
pub fn as_nobody<T>(work: impl FnOnce() -> T) -> T {
    let become_user = |user: u32| {
        // SAFETY: both calls take a number and change this thread's credentials only.
        unsafe {
            libc::setfsgid(user);
            libc::setfsuid(user);
        }
    };
    // SAFETY: the call takes nothing and always succeeds.
    let user = unsafe { libc::geteuid() };
    become_user(if user == 0 { NOBODY } else { user });
    let result = work();
    become_user(user);
    result
}

/// A path of a few parts that meet each other often, some of them not plain.
pub fn path(input: &mut Input<'_>) -> String {
    const PARTS: [&str; 16] = [
        "a",
        "b",
        "c",
        "..data",
        "..1",
        "..2",
        "..",
        ".",
        "",
        "..data_tmp",
        "..writing",
        "dev",
        "proc",
        "etc",
        "link",
        "ä",
    ];
    let count = usize::from(input.u8() % 6);
    let mut path = if input.below(4) == 3 { "/".to_owned() } else { String::new() };
    for part in 0..count {
        if part > 0 {
            path.push('/');
        }
        match input.u8() {
            255 => path.push(char::from(input.u8())),
            part => path.push_str(PARTS[usize::from(part) % PARTS.len()]),
        }
    }
    path
}

/// Every name below a directory.
pub fn names(directory: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut directories = vec![directory.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).unwrap().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                directories.push(entry.path());
            }
            found.insert(entry.path());
        }
    }
    found
}

/// A directory anew, owned by [`NOBODY`].
pub fn fresh(directory: &Path) {
    let _ = fs::remove_dir_all(directory);
    fs::create_dir_all(directory).unwrap();
    let _ = std::os::unix::fs::chown(directory, Some(NOBODY), Some(NOBODY));
}
