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

/// What a mount is of whose path alone does not tell: a volume that is served, or a part of any.
#[derive(Debug, Clone)]
pub struct Found {
    /// The kind of the whole volume.
    pub kind: VolumeKind,
    /// The whole volume's host path.
    pub whole: String,
    /// Where in it the part lies; empty for the whole.
    pub sub_path: String,
    /// The kubelet's record of it, if it is a CSI volume and there is one.
    pub csi: Option<CsiRecord>,
}

/// What was found, by the host paths of the mounts. Who brings a volume into the guest takes it from here, so that it is the one that
/// was judged.
pub type FoundVolumes = HashMap<String, Found>;

impl Found {
    /// What is wrong with a mount of it from `host_path`, if anything is.
    #[must_use]
    pub fn violation(&self, host_path: &str, policy: &PolicyConfig) -> Option<VolumeViolation> {
        self.kind.violation(host_path, self.csi.as_ref(), policy)
    }
}

/// Whether a mount of this kind has to be looked for on the node.
pub(super) fn has_to_be_found(kind: &VolumeKind) -> bool {
    matches!(kind, VolumeKind::SubPath { .. } | VolumeKind::File { .. })
}

/// What is mounted from `host_path`, if that has to be found. Blocks.
pub(super) fn look(host_path: &str, paths: &PodPaths, roots: &Roots) -> Result<Option<Found>, VolumeError> {
    let kind = paths.classify(host_path, roots);
    let (kind, whole, sub_path) = match kind {
        VolumeKind::SubPath { volume, .. } => {
            let part = subpath::find(host_path, &volume, roots)?;
            let kind = paths.classify(&part.whole, roots);
            // Pushed content is read where it is bound, whatever name it had.
            if part.removed && !matches!(kind, VolumeKind::Pushed { .. }) {
                let reason =
                    format!("was {:?} in the volume {volume}, and has been removed there", part.inside);
                return Err(VolumeError::Content { path: host_path.to_owned(), reason });
            }
            (kind, part.whole, part.inside)
        }
        kind if has_to_be_found(&kind) => (kind, host_path.to_owned(), String::new()),
        _ => return Ok(None),
    };
    let is_csi = matches!(&kind, VolumeKind::File { plugin, .. } if plugin == CSI_PLUGIN);
    let csi = if is_csi { record(&whole, roots) } else { None };
    Ok(Some(Found { kind, whole, sub_path, csi }))
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
