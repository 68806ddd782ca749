//! Opens the host's paths of volumes.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use ravelin_policy::Roots;
use rustix::fs::{Mode, OFlags, ResolveFlags, Stat, fstat, fstatfs, openat2};

use super::VolumeError;

// linux/magic.h
const TMPFS_MAGIC: u64 = 0x0102_1994;
const HUGETLBFS_MAGIC: u64 = 0x9584_58f6;

/// Opens a path below one of the roots. The roots themselves may lie behind symbolic links; below them there is none,
/// or the path's text, by which it was judged, would prove nothing.
pub(super) fn open(path: &str, roots: &Roots, flags: OFlags) -> io::Result<File> {
    let (root, rest) = root_of(path, roots)?;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let mut flags = flags | OFlags::CLOEXEC;
    if !flags.contains(OFlags::PATH) {
        // A FIFO in the place of a file must not stop us.
        flags |= OFlags::NONBLOCK;
    }
    Ok(openat2(root, rest, flags, Mode::empty(), resolve)?.into())
}

/// Where a path that [`open`] can open lies, whatever links lead to its root.
pub(super) fn real(path: &str, roots: &Roots) -> io::Result<PathBuf> {
    open(path, roots, OFlags::PATH)?;
    let (root, rest) = root_of(path, roots)?;
    Ok(std::fs::read_link(format!("/proc/self/fd/{}", root.as_raw_fd()))?.join(rest))
}

/// The root that a path is below, open, and the rest of the path.
fn root_of<'p>(path: &'p str, roots: &Roots) -> io::Result<(OwnedFd, &'p Path)> {
    let below = |root: &String| Some((root.clone(), Path::new(path).strip_prefix(root).ok()?));
    let (root, rest) = roots
        .kubelet
        .iter()
        .chain(&roots.containerd)
        .find_map(below)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "it is not in a directory of pods"))?;
    let root = rustix::fs::open(&root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    // The root itself.
    let rest = if rest.as_os_str().is_empty() { Path::new(".") } else { rest };
    Ok((root, rest))
}

/// An emptyDir as the kubelet made it on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct EmptyDirFacts {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Its medium is memory, with this size in bytes.
    pub memory: Option<u64>,
}

pub(super) fn empty_dir(path: &str, roots: &Roots) -> Result<EmptyDirFacts, VolumeError> {
    let failed = |source| VolumeError::Read { path: path.to_owned(), source };
    let directory = open(path, roots, OFlags::RDONLY | OFlags::DIRECTORY).map_err(failed)?;
    let parent = Path::new(path).parent().and_then(Path::to_str).unwrap_or("/");
    let parent = open(parent, roots, OFlags::RDONLY | OFlags::DIRECTORY).map_err(failed)?;
    let stat = |file: &File| fstat(file).map_err(|errno| failed(errno.into()));
    let (own, above) = (stat(&directory)?, stat(&parent)?);
    let system = fstatfs(&directory).map_err(|errno| failed(errno.into()))?;
    let magic = u64::try_from(system.f_type).unwrap_or_default();
    if magic == HUGETLBFS_MAGIC {
        return Err(VolumeError::NotSupported(format!("an emptyDir of huge pages ({path})")));
    }
    let memory = (magic == TMPFS_MAGIC && own.st_dev != above.st_dev)
        .then(|| system.f_blocks.saturating_mul(u64::try_from(system.f_bsize).unwrap_or_default()));
    Ok(EmptyDirFacts { mode: permissions(&own), uid: own.st_uid, gid: own.st_gid, memory })
}

pub(super) fn permissions(stat: &Stat) -> u32 {
    stat.st_mode & 0o7777
}
