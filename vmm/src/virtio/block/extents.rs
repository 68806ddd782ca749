//! A disk with a huge address space into which files are mapped while the guest runs.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use super::file::DiskFile;
use super::{Patience, Storage};
use crate::control::EXTENT_DISK_BYTES;
use crate::sync::lock;
use crate::virtio::buffers::Buffers;

/// Extents begin and end at multiples of this.
const ALIGNMENT: u64 = 4096;
/// More extents than a guest can have partitions on both disks are of no use.
const MAX_EXTENTS: usize = 1024;

/// An extent that cannot be added or removed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExtentError {
    /// Offset or length are not multiples of 4096, or the length is 0.
    #[error("An extent at {offset} of {length} bytes does not begin and end at multiples of {ALIGNMENT}")]
    Misaligned {
        /// First byte.
        offset: u64,
        /// Length in bytes.
        length: u64,
    },
    /// Beyond the disk's end.
    #[error("An extent at {offset} of {length} bytes exceeds the disk's {EXTENT_DISK_BYTES} bytes")]
    OutOfRange {
        /// First byte.
        offset: u64,
        /// Length in bytes.
        length: u64,
    },
    /// Another extent is in the way.
    #[error("An extent at {offset} of {length} bytes overlaps the extent at {other}")]
    Overlap {
        /// First byte.
        offset: u64,
        /// Length in bytes.
        length: u64,
        /// The other's first byte.
        other: u64,
    },
    /// No extent begins there.
    #[error("There is no extent at {0}")]
    Missing(u64),
    /// A writable extent on a read-only disk.
    #[error("An extent of a read-only disk cannot be writable")]
    ReadOnlyDisk,
    /// The table is full.
    #[error("The disk already has {MAX_EXTENTS} extents")]
    TooMany,
}

struct Extent {
    length: u64,
    file: DiskFile,
    writable: bool,
    /// Below `file`, so that the file is closed before anybody is told.
    closed: Closed,
}

/// Tells, when it is dropped, whoever removed the extent.
#[derive(Default)]
struct Closed(Mutex<Option<Box<dyn FnOnce() + Send>>>);

impl Drop for Closed {
    fn drop(&mut self) {
        if let Some(tell) = self.0.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            tell();
        }
    }
}

type Table = BTreeMap<u64, Arc<Extent>>;

/// The extents of one disk, shared between the disk and whoever adds and removes them. A request works with the table
/// as it found it, so that nobody waits for anybody.
#[derive(Clone)]
pub struct Extents {
    /// Held to take the table or to exchange it.
    table: Arc<Mutex<Arc<Table>>>,
    read_only: bool,
}

impl std::fmt::Debug for Extents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Extents").field("read_only", &self.read_only).finish_non_exhaustive()
    }
}

impl Extents {
    /// A disk without extents.
    #[must_use]
    pub fn new(read_only: bool) -> Self {
        Self { table: Arc::default(), read_only }
    }

    fn table(&self) -> Arc<Table> {
        Arc::clone(&lock(&self.table))
    }

    /// Maps `file` to `length` bytes from `offset` on.
    ///
    /// # Errors
    /// When the extent is misaligned, out of range, overlaps another, or may not be writable.
    pub fn add(&self, offset: u64, length: u64, file: File, writable: bool) -> Result<(), ExtentError> {
        if writable && self.read_only {
            return Err(ExtentError::ReadOnlyDisk);
        }
        if length == 0 || !offset.is_multiple_of(ALIGNMENT) || !length.is_multiple_of(ALIGNMENT) {
            return Err(ExtentError::Misaligned { offset, length });
        }
        let end = offset.checked_add(length).filter(|end| *end <= EXTENT_DISK_BYTES);
        let end = end.ok_or(ExtentError::OutOfRange { offset, length })?;
        let mut shared = lock(&self.table);
        let mut table = Table::clone(&shared);
        if table.len() >= MAX_EXTENTS {
            return Err(ExtentError::TooMany);
        }
        // The last extent that begins before this one's end is the only one that can reach into it.
        if let Some((other, extent)) = table.range(..end).next_back()
            && other + extent.length > offset
        {
            return Err(ExtentError::Overlap { offset, length, other: *other });
        }
        let extent = Extent { length, file: DiskFile::new(file), writable, closed: Closed::default() };
        table.insert(offset, Arc::new(extent));
        *shared = Arc::new(table);
        Ok(())
    }

    /// Takes the extent at `offset` off the disk. `closed` is called once its file is closed, which is when the requests
    /// that were begun before have ended.
    ///
    /// # Errors
    /// When no extent begins there; `closed` is then never called.
    pub fn remove(&self, offset: u64, closed: impl FnOnce() + Send + 'static) -> Result<(), ExtentError> {
        let mut shared = lock(&self.table);
        let mut table = Table::clone(&shared);
        let removed = table.remove(&offset).ok_or(ExtentError::Missing(offset))?;
        *lock(&removed.closed.0) = Some(Box::new(closed));
        let old = std::mem::replace(&mut *shared, Arc::new(table));
        // Not under the lock: the last to let go of a file closes it, which may take its time.
        drop(shared);
        drop((old, removed));
        Ok(())
    }

    /// Calls `act` with the extent that holds `[offset, offset + length)` whole and the offset within it.
    fn with<T>(
        &self,
        offset: u64,
        length: u64,
        act: impl FnOnce(&Extent, u64) -> io::Result<T>,
    ) -> io::Result<T> {
        let table = self.table();
        let (start, extent) = table.range(..=offset).next_back().ok_or(io::ErrorKind::NotFound)?;
        let (start, extent) = (*start, Arc::clone(extent));
        // Other extents are not this request's to keep open.
        drop(table);
        let within = offset.checked_sub(start).ok_or(io::ErrorKind::NotFound)?;
        let end = within.checked_add(length).ok_or(io::ErrorKind::NotFound)?;
        if end > extent.length {
            return Err(io::ErrorKind::NotFound.into());
        }
        act(&extent, within)
    }

    fn with_writable(
        &self,
        offset: u64,
        length: u64,
        act: impl FnOnce(&DiskFile, u64) -> io::Result<()>,
    ) -> io::Result<()> {
        self.with(offset, length, |extent, within| {
            if !extent.writable {
                return Err(io::ErrorKind::PermissionDenied.into());
            }
            act(&extent.file, within)
        })
    }
}

impl Storage for Extents {
    fn capacity(&self) -> u64 {
        EXTENT_DISK_BYTES
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn read(&self, buffers: &Buffers, offset: u64, patience: Patience) -> io::Result<()> {
        let length = buffers.len() as u64;
        self.with(offset, length, |extent, within| extent.file.read(buffers, within, patience))
    }

    fn write(&self, buffers: &Buffers, offset: u64, patience: Patience) -> io::Result<()> {
        let length = buffers.len() as u64;
        self.with_writable(offset, length, |file, within| file.write(buffers, within, patience))
    }

    fn flush(&self, patience: Patience) -> io::Result<()> {
        let writable: Vec<_> =
            self.table().iter().filter(|(_, extent)| extent.writable).map(|(at, _)| *at).collect();
        if patience == Patience::None && !writable.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        // Each is held only in its turn, so that one that hangs does not keep the others from being removed; and one that
        // fails does not keep the others from being written out. The first error is told.
        let mut result = Ok(());
        for at in writable {
            let extent = self.table().get(&at).filter(|extent| extent.writable).cloned();
            if let Some(extent) = extent {
                result = result.and(extent.file.sync());
            }
        }
        result
    }

    fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        // A volume may be a block device, which does not know every way of giving space back.
        self.write_zeroes(offset, length, true)
    }

    fn write_zeroes(&self, offset: u64, length: u64, unmap: bool) -> io::Result<()> {
        self.with_writable(offset, length, |file, within| file.write_zeroes(within, length, unmap))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::machine::memory;

    fn file(contents: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(contents).unwrap();
        file
    }

    #[test]
    fn extents_are_aligned_in_range_and_apart() {
        let extents = Extents::new(true);
        let add = |offset, length| extents.add(offset, length, file(b""), false);
        assert_eq!(add(8192, 8192), Ok(()));
        assert!(matches!(add(0, 12288), Err(ExtentError::Overlap { other: 8192, .. })));
        assert!(matches!(add(12288, 4096), Err(ExtentError::Overlap { other: 8192, .. })));
        assert_eq!(add(0, 8192), Ok(()));
        assert_eq!(add(16384, 4096), Ok(()));
        assert!(matches!(add(65536, 0), Err(ExtentError::Misaligned { .. })));
        assert!(matches!(add(65537, 4096), Err(ExtentError::Misaligned { .. })));
        assert!(matches!(add(EXTENT_DISK_BYTES, 4096), Err(ExtentError::OutOfRange { .. })));
        assert!(matches!(add(u64::MAX - 4095, 4096), Err(ExtentError::OutOfRange { .. })));
        assert_eq!(extents.add(1 << 30, 4096, file(b""), true), Err(ExtentError::ReadOnlyDisk));
        assert_eq!(extents.remove(4096, || {}), Err(ExtentError::Missing(4096)));
        assert_eq!(extents.remove(8192, || {}), Ok(()));
        assert_eq!(add(8192, 4096), Ok(()));
    }

    #[test]
    #[cfg_attr(miri, ignore = "it knows no vectored system calls")]
    fn reads_outside_an_extent_fail_and_a_short_file_reads_as_zeros() {
        let memory = memory::allocate(64).unwrap();
        let extents = Extents::new(true);
        extents.add(4096, 4096, file(b"layer"), false).unwrap();
        let mut buffers = Buffers::new();
        assert!(buffers.push(&memory, GuestAddress(0x1000), 512));
        memory.write_slice(&[0xff; 512], GuestAddress(0x1000)).unwrap();
        extents.read(&buffers, 4096, Patience::Any).unwrap();
        let mut read = [0; 512];
        buffers.read(0, &mut read);
        assert_eq!(&read[..6], b"layer\0");
        assert!(read[6..].iter().all(|byte| *byte == 0));
        assert!(extents.read(&buffers, 0, Patience::Any).is_err());
        assert!(extents.read(&buffers, 4096 - 256, Patience::Any).is_err());
        assert!(extents.read(&buffers, 8192 - 256, Patience::Any).is_err());
        assert!(extents.read(&buffers, 8192, Patience::Any).is_err());
        assert!(extents.write(&buffers, 4096, Patience::Any).is_err());
        extents.remove(4096, || {}).unwrap();
        assert!(extents.read(&buffers, 4096, Patience::Any).is_err());
    }

    #[test]
    fn nobody_waits_for_a_request_and_a_removal_is_told_when_the_file_is_closed() {
        let extents = Extents::new(true);
        extents.add(0, 4096, file(b""), false).unwrap();
        extents.add(8192, 4096, file(b""), false).unwrap();
        let told = Arc::new(Mutex::new(Vec::new()));
        let tell = |what| {
            let told = Arc::clone(&told);
            move || told.lock().unwrap().push(what)
        };
        // In the middle of a request.
        let result = extents.with(0, 512, |_, _| {
            extents.add(16384, 4096, file(b""), false).unwrap();
            extents.remove(0, tell("first")).unwrap();
            extents.remove(8192, tell("second")).unwrap();
            assert_eq!(*told.lock().unwrap(), ["second"], "a request holds its own extent only");
            assert!(extents.with(0, 512, |_, _| Ok(())).is_err());
            extents.add(0, 4096, file(b""), false).unwrap();
            Ok(())
        });
        result.unwrap();
        assert_eq!(*told.lock().unwrap(), ["second", "first"]);
        assert_eq!(extents.remove(4096, tell("never")), Err(ExtentError::Missing(4096)));
        assert_eq!(told.lock().unwrap().len(), 2);
    }

    #[test]
    #[cfg_attr(miri, ignore = "it knows no vectored system calls")]
    fn a_writable_extent_takes_writes_and_zeroes() {
        let memory = memory::allocate(64).unwrap();
        let extents = Extents::new(false);
        let backing = file(&[1; 4096]);
        extents.add(0, 4096, backing.try_clone().unwrap(), true).unwrap();
        extents.add(4096, 4096, file(b""), false).unwrap();
        let mut buffers = Buffers::new();
        assert!(buffers.push(&memory, GuestAddress(0x1000), 512));
        buffers.write(0, b"volume");
        extents.write(&buffers, 512, Patience::Any).unwrap();
        assert!(extents.write(&buffers, 4096, Patience::Any).is_err());
        extents.write_zeroes(1024, 512, false).unwrap();
        extents.flush(Patience::Any).unwrap();
        let mut read = [9; 2048];
        std::os::unix::fs::FileExt::read_exact_at(&backing, &mut read, 0).unwrap();
        assert_eq!(
            (read[511], &read[512..518], read[1023], read[1024], read[1536]),
            (1, &b"volume"[..], 0, 0, 1)
        );
    }
}
