//! A file that goes into guest memory by being mapped there: its pages are the host's page cache, shared by all
//! machines, until the guest writes to them.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsRawFd;

use vm_memory::bitmap::BitmapSlice;
use vm_memory::{ReadVolatile, VolatileMemoryError, VolatileSlice};

use super::memory::PAGE;

/// An image of whole pages and a tail. Reading from it into guest memory maps every page that lies on a page's
/// boundary in both file and memory, and copies the rest.
///
/// The file must not be written to while a machine runs that was started from it; it may be replaced by another of the
/// same name.
#[derive(Debug)]
pub struct Image<'a>(pub &'a File);

impl Read for Image<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Seek for Image<'_> {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        self.0.seek(position)
    }
}

impl ReadVolatile for Image<'_> {
    fn read_volatile<B: BitmapSlice>(
        &mut self,
        buffer: &mut VolatileSlice<'_, B>,
    ) -> Result<usize, VolatileMemoryError> {
        let mapped = self.map(buffer).map_err(VolatileMemoryError::IOError)?;
        if mapped == buffer.len() {
            return Ok(mapped);
        }
        let mut rest = buffer.offset(mapped)?;
        Ok(mapped + self.0.read_volatile(&mut rest)?)
    }
}

impl Image<'_> {
    /// Maps the whole pages of the file from its position on over the beginning of `buffer`, and moves the position
    /// behind them. Returns how many bytes that were; 0 when the two are not aligned.
    fn map<B: BitmapSlice>(&self, buffer: &VolatileSlice<'_, B>) -> io::Result<usize> {
        let mut file = self.0;
        let position = file.stream_position()?;
        let left = usize::try_from(file.metadata()?.len().saturating_sub(position)).unwrap_or(usize::MAX);
        let length = buffer.len().min(left) / PAGE * PAGE;
        let guard = buffer.ptr_guard_mut();
        let address = guard.as_ptr();
        let aligned = position.is_multiple_of(PAGE as u64) && address.align_offset(PAGE) == 0;
        if length == 0 || !aligned {
            return Ok(0);
        }
        let offset = libc::off_t::try_from(position).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: the range is inside guest memory, of whose contents the process assumes nothing and which it never
        // unmaps; only whole pages of it are replaced, and no processor runs yet.
        let mapped = unsafe {
            libc::mmap(
                address.cast(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE,
                file.as_raw_fd(),
                offset,
            )
        };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the range was mapped above. A failure only makes a dump of this process larger.
        unsafe { libc::madvise(mapped, length, libc::MADV_DONTDUMP) };
        file.seek(SeekFrom::Start(position + length as u64))?;
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::FileExt;

    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::machine::layout::MIB;
    use crate::machine::memory;

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn pages(count: usize, tail: usize) -> Vec<u8> {
        (0..count * PAGE + tail).map(|at| (at / 7 + at / PAGE) as u8).collect()
    }

    fn read_back(memory: &memory::GuestMemory, at: u64, length: usize) -> Vec<u8> {
        let mut back = vec![0; length];
        memory.read_slice(&mut back, GuestAddress(at)).unwrap();
        back
    }

    #[test]
    fn whole_pages_are_shared_with_the_file_and_the_tail_is_copied() {
        let memory = memory::allocate(64).unwrap();
        let bytes = pages(3, 100);
        let file = file(&bytes);
        (&file).seek(SeekFrom::Start(PAGE as u64)).unwrap();
        let rest = bytes.len() - PAGE;
        memory.read_exact_volatile_from(GuestAddress(MIB), &mut Image(&file), rest).unwrap();
        assert!(read_back(&memory, MIB, rest) == bytes[PAGE..]);
        assert_eq!(memory.read_obj::<u8>(GuestAddress(MIB + rest as u64)).unwrap(), 0);
        // A page that was never touched shows what the file says now: it is the file's.
        file.write_all_at(&[0xee], 2 * PAGE as u64 + 5).unwrap();
        file.write_all_at(&[0xee], 3 * PAGE as u64 + 5).unwrap();
        assert_eq!(memory.read_obj::<u8>(GuestAddress(MIB + PAGE as u64 + 5)).unwrap(), 0xee);
        assert_ne!(memory.read_obj::<u8>(GuestAddress(MIB + 2 * PAGE as u64 + 5)).unwrap(), 0xee);
    }

    #[test]
    fn what_the_guest_writes_stays_its_own() {
        let memory = memory::allocate(64).unwrap();
        let bytes = pages(2, 0);
        let file = file(&bytes);
        (&file).rewind().unwrap();
        memory.read_exact_volatile_from(GuestAddress(MIB), &mut Image(&file), bytes.len()).unwrap();
        memory.write_slice(&[0; 64], GuestAddress(MIB + 10)).unwrap();
        let mut kept = vec![0; bytes.len()];
        file.read_exact_at(&mut kept, 0).unwrap();
        assert!(kept == bytes);
    }

    #[test]
    fn what_is_not_aligned_is_copied() {
        let memory = memory::allocate(64).unwrap();
        let bytes = pages(2, 0);
        let file = file(&bytes);
        (&file).rewind().unwrap();
        memory.read_exact_volatile_from(GuestAddress(MIB + 1), &mut Image(&file), bytes.len()).unwrap();
        assert!(read_back(&memory, MIB + 1, bytes.len()) == bytes);
    }

    #[test]
    fn a_file_that_is_too_short_is_an_error() {
        let memory = memory::allocate(64).unwrap();
        let file = file(&pages(2, 0));
        (&file).rewind().unwrap();
        assert!(
            memory.read_exact_volatile_from(GuestAddress(MIB), &mut Image(&file), 3 * PAGE).is_err(),
            "two pages were taken for three"
        );
    }
}
