//! Files without a name, for what is not whole yet: whoever dies while one is made leaves nothing.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};

/// Makes an empty file on the file system of `directory` that only root can read.
pub(super) fn create(directory: &Path) -> io::Result<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    Ok(rustix::fs::open(directory, flags, Mode::RUSR | Mode::WUSR)?.into())
}

/// Opens it once more, for reading.
pub(super) fn reopen(file: &File) -> io::Result<File> {
    File::open(link(file))
}

/// Gives it the name `path`, in the directory that it was made in. There must be no such file.
pub(super) fn name(file: &File, path: &Path) -> io::Result<()> {
    Ok(rustix::fs::linkat(CWD, link(file), CWD, path, AtFlags::SYMLINK_FOLLOW)?)
}

/// Where the kernel shows this process what it has open.
fn link(file: &File) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}
