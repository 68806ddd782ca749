//! A file that holds a disk or a part of one.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::FallocateFlags;

use super::Patience;
use crate::virtio::buffers::Buffers;

/// A file with what is known of its file system.
#[derive(Debug)]
pub struct DiskFile {
    file: File,
    /// Whether its file system can read, and write, only as far as that takes no waiting.
    reads_now: AtomicBool,
    writes_now: AtomicBool,
}

impl DiskFile {
    /// Takes a file.
    #[must_use]
    pub fn new(file: File) -> Self {
        Self { file, reads_now: AtomicBool::new(true), writes_now: AtomicBool::new(true) }
    }

    /// Fills `buffers` from `offset` on; what the file lacks reads as zeros.
    ///
    /// # Errors
    /// What the file says; [`io::ErrorKind::WouldBlock`] without patience.
    pub fn read(&self, buffers: &Buffers, offset: u64, patience: Patience) -> io::Result<()> {
        let count = with(patience, &self.reads_now, |flags| buffers.read_from_at(&self.file, offset, flags))?;
        buffers.zero_from(count);
        Ok(())
    }

    /// Writes all of `buffers` from `offset` on.
    ///
    /// # Errors
    /// As of [`DiskFile::read`].
    pub fn write(&self, buffers: &Buffers, offset: u64, patience: Patience) -> io::Result<()> {
        let count = with(patience, &self.writes_now, |flags| buffers.write_to_at(&self.file, offset, flags))?;
        if count < buffers.len() { Err(io::ErrorKind::WriteZero.into()) } else { Ok(()) }
    }

    /// Makes finished writes durable.
    ///
    /// # Errors
    /// What the file says.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Gives the space of a range back, whose contents are then undefined.
    ///
    /// # Errors
    /// What the file says.
    pub fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(rustix::fs::fallocate(&self.file, flags, offset, length)?)
    }

    /// Makes a range read as zeros by the cheapest means that the file system has.
    ///
    /// # Errors
    /// What the file says.
    pub fn write_zeroes(&self, offset: u64, length: u64, unmap: bool) -> io::Result<()> {
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let zero = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
        let tries = if unmap { [punch, zero] } else { [zero, punch] };
        for flags in tries {
            match rustix::fs::fallocate(&self.file, flags, offset, length) {
                Ok(()) => return Ok(()),
                Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::INVAL) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Makes a positioned call with the flags that `patience` asks for. `able` is cleared if the file system does not know
/// them for this kind of call.
fn with(
    patience: Patience,
    able: &AtomicBool,
    call: impl FnOnce(i32) -> io::Result<usize>,
) -> io::Result<usize> {
    match patience {
        Patience::Any => call(0),
        Patience::None if !able.load(Ordering::Relaxed) => Err(io::ErrorKind::WouldBlock.into()),
        Patience::None => match call(libc::RWF_NOWAIT) {
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                able.store(false, Ordering::Relaxed);
                Err(io::ErrorKind::WouldBlock.into())
            }
            result => result,
        },
    }
}
