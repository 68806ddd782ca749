//! Files in whose place a container may have put anything: a link out of its root, a pipe that nobody writes to, a device that
//! does something when it is opened.
//!
//! Such a file is first found without being opened (`O_PATH`), then looked at, and only what it is expected to be is opened, by
//! the descriptor and not by its name. That goes through `/proc`, which must be the kernel's own.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, fstatfs, open, openat, openat2};

/// A `/proc` that is the kernel's own.
///
/// It stays what it is when the thread that has it joins a container's mount namespace.
#[derive(Debug)]
pub struct Proc(OwnedFd);

impl Proc {
    /// Opens the calling thread's.
    ///
    /// # Errors
    ///
    /// When there is none, or something else is in its place.
    pub fn open() -> io::Result<Self> {
        /// `PROC_SUPER_MAGIC` of linux/magic.h.
        const PROC: i64 = 0x9fa0;
        /// The number of its root directory (`PROC_ROOT_INO`).
        const ROOT: u64 = 1;
        let proc = open("/proc", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        if fstatfs(&proc)?.f_type != PROC || fstat(&proc)?.st_ino != ROOT {
            return Err(io::Error::other("/proc is not the kernel's"));
        }
        Ok(Self(proc))
    }

    /// Opens what `found` is a descriptor of.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn reopen(&self, found: impl AsFd, flags: OFlags) -> io::Result<OwnedFd> {
        // Nothing that is mounted over parts of it is passed through.
        let resolve = ResolveFlags::NO_XDEV | ResolveFlags::NO_MAGICLINKS;
        let path = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let own = openat2(&self.0, "thread-self/fd", path, Mode::empty(), resolve)?;
        let name = found.as_fd().as_raw_fd().to_string();
        Ok(openat(&own, name, flags | OFlags::CLOEXEC, Mode::empty())?)
    }

    /// Opens the regular file that `path` leads to below `root`, links followed as if that were the only root there is.
    ///
    /// # Errors
    ///
    /// When there is none, something else is there, or the kernel refuses.
    pub fn regular(&self, root: impl AsFd, path: impl AsRef<Path>, flags: OFlags) -> io::Result<File> {
        let found = find(root, path.as_ref())?;
        if !FileType::from_raw_mode(fstat(&found)?.st_mode).is_file() {
            return Err(io::Error::other("it is not a regular file"));
        }
        // It is not waited for either: somebody may hold a lease on it.
        self.reopen(&found, flags | OFlags::NONBLOCK).map(File::from)
    }
}

/// Finds a path below `root`, links followed as if that were the only root there is; what it leads to is not opened.
///
/// # Errors
///
/// When it leads to nothing.
pub fn find(root: impl AsFd, path: &Path) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    Ok(openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve)?)
}

/// A directory to find paths below.
///
/// # Errors
///
/// When it cannot be opened.
pub fn directory(path: &Path) -> io::Result<OwnedFd> {
    Ok(open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Read;
    use std::os::unix::fs::symlink;

    use rustix::fs::{CWD, mknodat};

    use super::*;

    fn read(root: &Path, path: &str) -> io::Result<String> {
        let mut text = String::new();
        Proc::open()?.regular(directory(root)?, path, OFlags::RDONLY)?.read_to_string(&mut text).map(|_| text)
    }

    #[test]
    fn a_regular_file_is_opened_through_the_roots_own_links() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("etc")).unwrap();
        fs::write(root.path().join("etc/file"), "inside").unwrap();
        symlink("/../../etc/file", root.path().join("link")).unwrap();
        assert_eq!(read(root.path(), "link").unwrap(), "inside");
    }

    #[test]
    fn what_is_not_a_regular_file_is_never_opened() {
        let root = tempfile::tempdir().unwrap();
        mknodat(CWD, root.path().join("fifo"), FileType::Fifo, Mode::RWXU, 0).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(root.path().join("socket")).unwrap();
        fs::create_dir(root.path().join("directory")).unwrap();
        for name in ["fifo", "socket", "directory"] {
            let error = read(root.path(), name).unwrap_err().to_string();
            assert_eq!(error, "it is not a regular file", "{name}");
        }
        // Whoever waits for a reader of the pipe has not been let go on.
        let writer = OFlags::WRONLY | OFlags::NONBLOCK;
        let waits = open(root.path().join("fifo"), writer, Mode::empty());
        assert_eq!(waits.unwrap_err(), rustix::io::Errno::NXIO);
    }

    #[test]
    fn links_of_the_kernels_own_and_links_out_lead_nowhere() {
        let root = tempfile::tempdir().unwrap();
        symlink("/etc/passwd", root.path().join("out")).unwrap();
        assert_eq!(read(root.path(), "out").unwrap_err().kind(), io::ErrorKind::NotFound);
        let outside = fs::File::open("/etc/passwd").unwrap();
        let magic = format!("self/fd/{}", outside.as_raw_fd());
        let error = read(Path::new("/proc"), &magic).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ELOOP));
    }
}
