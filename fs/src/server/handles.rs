//! Files and directories that the guest has open.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard};

use rustix::io::Errno;

use super::lock;

/// An open file or directory.
#[derive(Debug)]
pub(super) struct Handle {
    file: OwnedFd,
    /// Held while a directory's position is used.
    position: Mutex<()>,
    /// Whether the node appends whatever is written, wherever it belongs.
    pub grows: bool,
}

impl Handle {
    /// A file or a directory that was opened.
    pub fn new(file: OwnedFd) -> Self {
        Self { file, position: Mutex::new(()), grows: false }
    }

    /// A file that could be opened with `O_APPEND` only.
    pub fn that_grows(file: OwnedFd) -> Self {
        Self { grows: true, ..Self::new(file) }
    }

    /// Nobody else moves the position meanwhile.
    pub fn lock_position(&self) -> MutexGuard<'_, ()> {
        lock(&self.position)
    }
}

impl AsFd for Handle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// All of them. The limit on open files is their limit.
#[derive(Debug, Default)]
pub(super) struct Handles(Mutex<(HashMap<u64, Arc<Handle>>, u64)>);

impl Handles {
    /// Adds one; returns the number that the guest names it by, which is not used again.
    pub fn add(&self, handle: Handle) -> u64 {
        let mut handles = lock(&self.0);
        handles.1 += 1;
        let number = handles.1;
        handles.0.insert(number, Arc::new(handle));
        number
    }

    /// The file of a number.
    pub fn get(&self, number: u64) -> Result<Arc<Handle>, Errno> {
        lock(&self.0).0.get(&number).cloned().ok_or(Errno::BADF)
    }

    /// The guest has closed it.
    pub fn remove(&self, number: u64) -> Result<(), Errno> {
        lock(&self.0).0.remove(&number).map(drop).ok_or(Errno::BADF)
    }

    /// The guest has closed all.
    pub fn clear(&self) {
        lock(&self.0).0.clear();
    }
}
