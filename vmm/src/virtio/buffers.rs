//! Pieces of guest memory that were checked once and are then read, written or handed to the kernel.
//!
//! This is the only place where device code meets raw pointers into guest memory. The guest's processors may change
//! the bytes at any moment, so nothing here forms a reference to them.

use std::io;
use std::os::fd::AsFd;

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, VolatileSlice};

use crate::event::raw;
use crate::machine::memory::{self, GuestMemory};

/// A list of pieces of guest memory, in order.
#[derive(Debug, Default)]
pub struct Buffers {
    pieces: Vec<libc::iovec>,
    length: usize,
    /// Keeps the mapping alive that `pieces` point into.
    memory: Option<GuestMemory>,
}

// SAFETY: the pointers lead into guest memory, which every thread may access through volatile operations and system
// calls, and which `memory` keeps mapped.
unsafe impl Send for Buffers {}

impl Buffers {
    /// An empty list.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Total length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether there are no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Number of pieces.
    #[must_use]
    pub fn pieces(&self) -> usize {
        self.pieces.len()
    }

    /// Forgets all pieces but keeps the room for them.
    pub fn clear(&mut self) {
        self.pieces.clear();
        self.length = 0;
    }

    /// Appends `length` bytes of guest memory at `address`; false if that is not all memory.
    #[must_use]
    pub fn push(&mut self, memory: &GuestMemory, address: GuestAddress, length: u32) -> bool {
        let Ok(length) = usize::try_from(length) else { return false };
        let Ok(slice) = memory.get_slice(address, length) else { return false };
        let Some(total) = self.length.checked_add(length) else { return false };
        if self.memory.is_none() {
            self.memory = Some(memory.clone());
        }
        self.pieces.push(libc::iovec { iov_base: slice.ptr_guard_mut().as_ptr().cast(), iov_len: length });
        self.length = total;
        true
    }

    /// Moves all pieces of `other` behind those of this list.
    pub fn append(&mut self, other: &mut Self) {
        if self.memory.is_none() {
            self.memory.clone_from(&other.memory);
        }
        self.pieces.append(&mut other.pieces);
        self.length = self.length.saturating_add(other.length);
        other.length = 0;
    }

    /// Makes `target` the part of this list from `offset` on, at most `length` bytes.
    pub fn slice_into(&self, offset: usize, length: usize, target: &mut Self) {
        target.clear();
        target.memory.clone_from(&self.memory);
        let mut skip = offset;
        let mut left = length;
        for piece in &self.pieces {
            if left == 0 {
                break;
            }
            if skip >= piece.iov_len {
                skip -= piece.iov_len;
                continue;
            }
            let take = (piece.iov_len - skip).min(left);
            target.pieces.push(libc::iovec {
                iov_base: piece.iov_base.cast::<u8>().wrapping_add(skip).cast(),
                iov_len: take,
            });
            target.length += take;
            left -= take;
            skip = 0;
        }
    }

    /// Takes the first `pieces` pieces off.
    pub fn drop_pieces(&mut self, pieces: usize) {
        let pieces = pieces.min(self.pieces.len());
        let dropped: usize = self.pieces.drain(..pieces).map(|piece| piece.iov_len).sum();
        self.length = self.length.saturating_sub(dropped);
    }

    /// Copies bytes from `offset` on into `target`; returns how many there were.
    pub fn read(&self, offset: usize, target: &mut [u8]) -> usize {
        self.copy(offset, target.len(), |slice, at, count| {
            if let Some(part) = target.get_mut(at..at + count) {
                slice.copy_to(part);
            }
        })
    }

    /// Copies `source` to the bytes from `offset` on; returns how many found room.
    pub fn write(&self, offset: usize, source: &[u8]) -> usize {
        self.copy(offset, source.len(), |slice, at, count| {
            if let Some(part) = source.get(at..at + count) {
                slice.copy_from(part);
            }
        })
    }

    /// Fills the bytes from `offset` on with zeros.
    pub fn zero_from(&self, offset: usize) {
        const ZEROS: [u8; 4096] = [0; 4096];
        self.copy(offset, self.length.saturating_sub(offset), |slice, _, count| {
            let mut done = 0;
            while done < count {
                let step = (count - done).min(ZEROS.len());
                let _ = slice.write_slice(&ZEROS[..step], done);
                done += step;
            }
        });
    }

    /// Gives the whole pages among these buffers back to the host; they read as zeros next.
    pub fn discard(&self) {
        for piece in &self.pieces {
            // SAFETY: a piece lies inside guest memory. What the kernel refuses to take back stays the guest's.
            let _ = unsafe { memory::discard_mapped(piece.iov_base.cast(), piece.iov_len) };
        }
    }

    /// Walks the bytes `[offset, offset + length)` and returns how many of them exist. `visit` gets a piece, how many
    /// bytes came before it, and its length.
    fn copy(
        &self,
        offset: usize,
        length: usize,
        mut visit: impl FnMut(VolatileSlice<'_>, usize, usize),
    ) -> usize {
        let mut skip = offset;
        let mut done = 0;
        for piece in &self.pieces {
            if done == length {
                break;
            }
            if skip >= piece.iov_len {
                skip -= piece.iov_len;
                continue;
            }
            let count = (piece.iov_len - skip).min(length - done);
            let start = piece.iov_base.cast::<u8>().wrapping_add(skip);
            // SAFETY: `skip + count` is at most the piece's length, and the piece is mapped guest memory (checked
            // by `push`), kept alive by `self.memory`.
            visit(unsafe { VolatileSlice::new(start, count) }, done, count);
            done += count;
            skip = 0;
        }
        done
    }

    /// Reads from `fd` into the buffers (`readv`).
    ///
    /// # Errors
    /// Whatever the descriptor says.
    pub fn read_from(&self, fd: &impl AsFd) -> io::Result<usize> {
        // SAFETY: the pieces are mapped guest memory; the kernel tolerates concurrent change.
        check(unsafe { libc::readv(raw(fd), self.pieces.as_ptr(), self.count()) })
    }

    /// Writes the buffers to `fd` (`writev`).
    ///
    /// # Errors
    /// Whatever the descriptor says.
    pub fn write_to(&self, fd: &impl AsFd) -> io::Result<usize> {
        // SAFETY: as in `read_from`.
        check(unsafe { libc::writev(raw(fd), self.pieces.as_ptr(), self.count()) })
    }

    /// Reads from the socket `fd` into the buffers without waiting.
    ///
    /// # Errors
    /// Whatever the socket says, [`io::ErrorKind::WouldBlock`] if it has nothing.
    pub fn receive_from(&self, fd: &impl AsFd) -> io::Result<usize> {
        let mut message = self.message();
        // SAFETY: as in `read_from`; the other fields of `message` are zero, which means absent.
        check(unsafe { libc::recvmsg(raw(fd), &raw mut message, libc::MSG_DONTWAIT) })
    }

    /// Writes the buffers to the socket `fd` without waiting and without a signal if it is closed.
    ///
    /// # Errors
    /// Whatever the socket says, [`io::ErrorKind::WouldBlock`] if it has no room.
    pub fn send_to(&self, fd: &impl AsFd) -> io::Result<usize> {
        let message = self.message();
        // SAFETY: as in `receive_from`.
        check(unsafe { libc::sendmsg(raw(fd), &raw const message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) })
    }

    /// Reads from `fd` at `offset` into the buffers (`preadv2` with `flags`); a short count means the file's end.
    ///
    /// # Errors
    /// Whatever the file says.
    pub fn read_from_at(&self, fd: &impl AsFd, offset: u64, flags: i32) -> io::Result<usize> {
        // SAFETY: as in `read_from`.
        self.all_at(offset, |pieces, count, at| unsafe { libc::preadv2(raw(fd), pieces, count, at, flags) })
    }

    /// Writes the buffers to `fd` at `offset` (`pwritev2` with `flags`).
    ///
    /// # Errors
    /// Whatever the file says.
    pub fn write_to_at(&self, fd: &impl AsFd, offset: u64, flags: i32) -> io::Result<usize> {
        // SAFETY: as in `read_from`.
        self.all_at(offset, |pieces, count, at| unsafe { libc::pwritev2(raw(fd), pieces, count, at, flags) })
    }

    /// Repeats a positioned call until everything is done or nothing moves.
    fn all_at(
        &self,
        offset: u64,
        mut call: impl FnMut(*const libc::iovec, i32, i64) -> isize,
    ) -> io::Result<usize> {
        let mut done = 0;
        let mut rest = Self::new();
        while done < self.length {
            let current = if done == 0 {
                self
            } else {
                self.slice_into(done, usize::MAX, &mut rest);
                &rest
            };
            let at = offset.checked_add(done as u64).and_then(|at| i64::try_from(at).ok());
            let at = at.ok_or(io::ErrorKind::InvalidInput)?;
            match check(call(current.pieces.as_ptr(), current.count(), at)) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn message(&self) -> libc::msghdr {
        // SAFETY: an all-zero msghdr is valid: no name, no data, no control data.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = self.pieces.as_ptr().cast_mut();
        message.msg_iovlen = self.pieces.len().min(libc::UIO_MAXIOV as usize);
        message
    }

    fn count(&self) -> i32 {
        i32::try_from(self.pieces.len()).map_or(libc::UIO_MAXIOV, |count| count.min(libc::UIO_MAXIOV))
    }
}

fn check(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;
    use crate::machine::memory;

    fn two_pieces(memory: &GuestMemory) -> Buffers {
        let mut buffers = Buffers::new();
        assert!(buffers.push(memory, GuestAddress(0x1000), 3));
        assert!(buffers.push(memory, GuestAddress(0x2000), 5));
        buffers
    }

    #[test]
    fn what_is_not_memory_is_refused() {
        let memory = memory::allocate(64).unwrap();
        let mut buffers = Buffers::new();
        assert!(!buffers.push(&memory, GuestAddress(64 << 20), 1));
        assert!(!buffers.push(&memory, GuestAddress((64 << 20) - 1), 2));
        assert!(!buffers.push(&memory, GuestAddress(u64::MAX), 2));
        assert!(buffers.is_empty());
    }

    #[test]
    fn copies_cross_pieces_and_stop_at_the_end() {
        let memory = memory::allocate(64).unwrap();
        let buffers = two_pieces(&memory);
        assert_eq!(buffers.write(1, b"abcdefghij"), 7);
        let mut read = [0; 16];
        assert_eq!(buffers.read(2, &mut read), 6);
        assert_eq!(&read[..6], b"bcdefg");
        buffers.zero_from(4);
        assert_eq!(buffers.read(1, &mut read), 7);
        assert_eq!(&read[..7], b"abc\0\0\0\0");
    }

    #[test]
    fn a_slice_is_the_same_memory() {
        let memory = memory::allocate(64).unwrap();
        let buffers = two_pieces(&memory);
        let mut slice = Buffers::new();
        buffers.slice_into(2, 3, &mut slice);
        assert_eq!((slice.len(), slice.pieces()), (3, 2));
        slice.write(0, b"xyz");
        let mut read = [0; 8];
        buffers.read(0, &mut read);
        assert_eq!(&read, b"\0\0xyz\0\0\0");
    }

    #[test]
    #[cfg_attr(miri, ignore = "it knows no vectored system calls")]
    fn files_and_sockets_move_bytes_without_a_copy() {
        let memory = memory::allocate(64).unwrap();
        let buffers = two_pieces(&memory);
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123456").unwrap();
        assert_eq!(buffers.read_from_at(&file, 2, 0).unwrap(), 5);
        assert_eq!(buffers.write_to_at(&file, 100, 0).unwrap(), 8);
        let (mut left, right) = std::os::unix::net::UnixStream::pair().unwrap();
        assert_eq!(buffers.send_to(&right).unwrap(), 8);
        let mut read = [0; 8];
        left.read_exact(&mut read).unwrap();
        assert_eq!(&read, b"23456\0\0\0");
        assert_eq!(buffers.receive_from(&right).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}
