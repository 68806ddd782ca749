//! A disk that is one file: the pod's scratch space.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use rustix::fs::FallocateFlags;

use super::Storage;
use super::request::SECTOR;
use crate::virtio::buffers::Buffers;

/// A raw, sparse file as a disk. Its contents are the guest's alone and never interpreted.
#[derive(Debug)]
pub struct Scratch {
    file: File,
    capacity: u64,
}

impl Scratch {
    /// Uses all whole sectors of `file`.
    ///
    /// # Errors
    /// When the file's size cannot be found out.
    pub fn new(file: File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        let size = if metadata.file_type().is_block_device() {
            io::Seek::seek(&mut &file, io::SeekFrom::End(0))?
        } else {
            metadata.size()
        };
        Ok(Self { file, capacity: size / SECTOR * SECTOR })
    }
}

impl Storage for Scratch {
    fn capacity(&self) -> u64 {
        self.capacity
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn can_discard(&self) -> bool {
        true
    }

    fn read(&mut self, buffers: &Buffers, offset: u64) -> io::Result<()> {
        read_or_zero(&self.file, buffers, offset)
    }

    fn write(&mut self, buffers: &Buffers, offset: u64) -> io::Result<()> {
        write_all(&self.file, buffers, offset)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn discard(&mut self, offset: u64, length: u64) -> io::Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(rustix::fs::fallocate(&self.file, flags, offset, length)?)
    }

    fn write_zeroes(&mut self, offset: u64, length: u64, unmap: bool) -> io::Result<()> {
        zero_range(&self.file, offset, length, unmap)
    }
}

/// Reads from a file; what the file lacks reads as zeros.
pub(super) fn read_or_zero(file: &File, buffers: &Buffers, offset: u64) -> io::Result<()> {
    let count = buffers.read_from_at(file, offset)?;
    buffers.zero_from(count);
    Ok(())
}

/// Writes everything or fails.
pub(super) fn write_all(file: &File, buffers: &Buffers, offset: u64) -> io::Result<()> {
    let count = buffers.write_to_at(file, offset)?;
    if count < buffers.len() { Err(io::ErrorKind::WriteZero.into()) } else { Ok(()) }
}

/// Makes a range of a file read as zeros by the cheapest means that its file system has.
pub(super) fn zero_range(file: &File, offset: u64, length: u64, unmap: bool) -> io::Result<()> {
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let zero = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
    let tries = if unmap { [punch, zero] } else { [zero, punch] };
    for flags in tries {
        match rustix::fs::fallocate(file, flags, offset, length) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::INVAL) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Err(io::ErrorKind::Unsupported.into())
}
