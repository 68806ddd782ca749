//! The volumes: directories that were handed over, each a folder of the root that the guest mounts.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use rustix::fs::{AtFlags, FileType, StatxFlags, statx};
use rustix::io::Errno;

use super::lock;

/// Most volumes.
const MAX_VOLUMES: usize = 1024;

/// A volume.
#[derive(Debug)]
pub(super) struct Volume {
    /// Its number, which is its folder's name.
    pub number: u32,
    /// Whether nothing may be changed in it.
    pub read_only: bool,
    directory: OwnedFd,
}

impl Volume {
    /// Fails with `EROFS` if nothing may be changed in it.
    pub fn check_writable(&self) -> Result<(), Errno> {
        if self.read_only { Err(Errno::ROFS) } else { Ok(()) }
    }

    /// Another descriptor of its directory.
    pub fn open(&self) -> Result<OwnedFd, Errno> {
        rustix::io::fcntl_dupfd_cloexec(&self.directory, 0)
    }
}

/// A directory that cannot be a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum VolumeError {
    /// There is one of this number.
    #[error("there is a volume {0} already")]
    Taken(u32),
    /// There are as many as there may be.
    #[error("there are {MAX_VOLUMES} volumes already")]
    TooMany,
    /// It is not a directory.
    #[error("what was handed over for volume {0} is not a directory")]
    NoDirectory(u32),
    /// The kernel does not say what it is.
    #[error("the directory of volume {0} cannot be looked at: {1}")]
    Unusable(u32, Errno),
}

/// All of them. None is ever taken away.
#[derive(Debug, Default)]
pub(super) struct Volumes(Mutex<BTreeMap<u32, Arc<Volume>>>);

impl Volumes {
    /// Adds one.
    pub fn add(&self, number: u32, read_only: bool, directory: OwnedFd) -> Result<(), VolumeError> {
        // What kind of file it is, it is for good: its file system is not asked, which may not answer.
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        let stat = statx(&directory, c"", flags, StatxFlags::TYPE)
            .map_err(|errno| VolumeError::Unusable(number, errno))?;
        if FileType::from_raw_mode(stat.stx_mode.into()) != FileType::Directory {
            return Err(VolumeError::NoDirectory(number));
        }
        let mut volumes = lock(&self.0);
        if volumes.len() >= MAX_VOLUMES {
            return Err(VolumeError::TooMany);
        }
        if volumes.contains_key(&number) {
            return Err(VolumeError::Taken(number));
        }
        volumes.insert(number, Arc::new(Volume { number, read_only, directory }));
        Ok(())
    }

    /// The volume whose folder has this name.
    pub fn find(&self, name: &CStr) -> Result<Arc<Volume>, Errno> {
        let name = name.to_str().map_err(|_| Errno::NOENT)?;
        let number: u32 = name.parse().map_err(|_| Errno::NOENT)?;
        // One name only: no sign and no zeros in front.
        if number.to_string() != name {
            return Err(Errno::NOENT);
        }
        lock(&self.0).get(&number).cloned().ok_or(Errno::NOENT)
    }

    /// The first one from a number on.
    pub fn next(&self, from: u32) -> Option<Arc<Volume>> {
        lock(&self.0).range(from..).next().map(|(_, volume)| Arc::clone(volume))
    }
}
