//! File volumes: directories of the node that the pod's file server serves to its guest.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use async_trait::async_trait;
use ravelin_policy::{CSI_PLUGIN, CsiRecord, PolicyConfig, Roots, VolumeKind, VolumeViolation};
use rustix::fs::{FileType, OFlags, fstat};
use rustix::mount::{OpenTreeFlags, open_tree};

use super::{PodPaths, VolumeError, host, subpath};

/// The kubelet's record of a CSI volume, beside its mount point.
const RECORD: &str = "vol_data.json";
/// Largest record that is read, in bytes.
const MAX_RECORD: u64 = 64 << 10;

/// Which directory it is that is served: one that was mounted anew at the same path is another one.
pub type Identity = (String, u64, u64);

/// A directory to be served.
#[derive(Debug)]
pub struct Directory {
    /// Which it is.
    pub identity: Identity,
    /// Nothing may be changed in it.
    pub read_only: bool,
    /// It and what is mounted below it, as mounts of their own that are in no namespace.
    pub tree: OwnedFd,
}

/// Who serves directories to the guest.
#[async_trait]
pub trait Serve: Send + Sync {
    /// Serves a directory, if it is not yet, and tells the number of its folder in the guest.
    ///
    /// # Errors
    /// A sentence.
    async fn serve(&self, directory: Directory) -> Result<u32, String>;
}

/// What a file volume, or a part of one, is beyond its path.
#[derive(Debug, Clone)]
pub struct FileVolume {
    /// The kind of the whole volume.
    pub kind: VolumeKind,
    /// The kubelet's record of it, if it is a CSI volume and there is one.
    pub csi: Option<CsiRecord>,
}

/// File volumes by the host paths of the mounts that are of them.
pub type FileVolumes = HashMap<String, FileVolume>;

impl FileVolume {
    /// What is wrong with a mount of it from `host_path`, if anything is.
    #[must_use]
    pub fn violation(&self, host_path: &str, policy: &PolicyConfig) -> Option<VolumeViolation> {
        self.kind.violation(host_path, self.csi.as_ref(), policy)
    }
}

/// The file volume that is mounted from `host_path`, if it is from one. What cannot be found is left to whoever mounts it.
/// Blocks.
pub(super) fn look(host_path: &str, paths: &PodPaths) -> Option<FileVolume> {
    let (whole, kind) = match paths.classify(host_path) {
        VolumeKind::SubPath { volume, .. } => {
            let whole = subpath::find_volume(host_path, &volume, &paths.roots.known()).ok()?;
            let kind = paths.classify(&whole);
            (whole, kind)
        }
        kind => (host_path.to_owned(), kind),
    };
    let VolumeKind::File { plugin, .. } = &kind else { return None };
    let csi = if plugin == CSI_PLUGIN { record(&whole, &paths.roots.known()) } else { None };
    Some(FileVolume { kind, csi })
}

/// The kubelet's record of the CSI volume that is mounted at `whole`. One that cannot be read is as one that is not there, which the
/// policy decides about; it is logged.
fn record(whole: &str, roots: &Roots) -> Option<CsiRecord> {
    let path = Path::new(whole).with_file_name(RECORD);
    let path = path.to_str()?;
    let read = || {
        let file = host::open(path, roots, OFlags::RDONLY)?;
        let mut text = Vec::new();
        file.take(MAX_RECORD).read_to_end(&mut text)?;
        serde_json::from_slice(&text).map_err(io::Error::from)
    };
    read().inspect_err(|error| tracing::warn!("cannot read the record of a CSI volume {path}: {error}")).ok()
}

/// Opens the directory of a file volume. Blocks, also for as long as a file server of the network does not answer.
pub(super) fn open(path: &str, roots: &Roots, read_only: bool) -> Result<Directory, VolumeError> {
    let failed = |source| VolumeError::Read { path: path.to_owned(), source };
    let directory = host::open(path, roots, OFlags::PATH | OFlags::NOFOLLOW).map_err(failed)?;
    let stat = fstat(&directory).map_err(|errno| failed(errno.into()))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return Err(VolumeError::Content {
            path: path.to_owned(),
            reason: "is not a directory: single files, devices, pipes and sockets of the node are not served"
                .to_owned(),
        });
    }
    let tree = detach(&directory, read_only).map_err(failed)?;
    Ok(Directory { identity: (path.to_owned(), stat.st_dev, stat.st_ino), read_only, tree })
}

/// Makes a copy of the mounts at and below a directory that is in no namespace. Nothing in it is followed, run or opened as a
/// device by whoever has it, and what is mounted on the node later, or taken away, does not concern it.
fn detach(directory: &File, read_only: bool) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE
        | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = open_tree(directory, c"", flags)?;
    // SAFETY: all-zero is a valid value of this plain structure.
    let mut attributes: libc::mount_attr = unsafe { std::mem::zeroed() };
    attributes.attr_set = libc::MOUNT_ATTR_NODEV
        | libc::MOUNT_ATTR_NOSUID
        | libc::MOUNT_ATTR_NOEXEC
        | libc::MOUNT_ATTR_NOSYMFOLLOW;
    if read_only {
        attributes.attr_set |= libc::MOUNT_ATTR_RDONLY;
    }
    attributes.propagation = libc::MS_PRIVATE;
    // SAFETY: the path is NUL-terminated, and `attributes`, whose size is told, lives through the call.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if done == 0 { Ok(tree) } else { Err(io::Error::last_os_error()) }
}
