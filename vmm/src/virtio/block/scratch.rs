//! A disk that is one file: the pod's scratch space.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use super::file::DiskFile;
use super::request::SECTOR;
use super::{Patience, Storage};
use crate::virtio::buffers::Buffers;

/// A raw, sparse file as a disk. Its contents are the guest's alone, never interpreted, and gone with the machine: a
/// flush has only to order writes, which every later read sees anyway, and never reaches the node's disk.
#[derive(Debug)]
pub struct Scratch {
    file: DiskFile,
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
        Ok(Self { file: DiskFile::new(file), capacity: size / SECTOR * SECTOR })
    }
}

impl Storage for Scratch {
    fn capacity(&self) -> u64 {
        self.capacity
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn read(&self, buffers: &Buffers, offset: u64, patience: Patience) -> io::Result<()> {
        self.file.read(buffers, offset, patience)
    }

    fn write(&self, buffers: &Buffers, offset: u64, patience: Patience) -> io::Result<()> {
        self.file.write(buffers, offset, patience)
    }

    fn flush(&self, _patience: Patience) -> io::Result<()> {
        Ok(())
    }

    fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        self.file.discard(offset, length)
    }

    fn write_zeroes(&self, offset: u64, length: u64, unmap: bool) -> io::Result<()> {
        self.file.write_zeroes(offset, length, unmap)
    }
}
