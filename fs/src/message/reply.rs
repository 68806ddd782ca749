//! Replies, put together in a buffer.

use rustix::fs::Stat;
use rustix::io::Errno;

use super::abi::OUT_HEADER;

/// Seconds for which the guest may believe what it was told of a name or a file: a change by the node, or by another pod, is
/// seen after so long at most.
const VALID_SECONDS: u64 = 1;

/// A reply, of which the header is written last.
#[derive(Debug)]
pub struct Reply<'a> {
    buffer: &'a mut [u8],
    length: usize,
    /// Most bytes of a file's in it.
    data: usize,
}

impl<'a> Reply<'a> {
    /// An empty reply in `buffer`, with at most `data` bytes of a file.
    #[must_use]
    pub fn new(buffer: &'a mut [u8], data: usize) -> Self {
        Self { buffer, length: OUT_HEADER, data }
    }

    /// Bytes that were put into it so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.length - OUT_HEADER
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Most bytes of a file's that it may have.
    #[must_use]
    pub fn max_data(&self) -> usize {
        self.data
    }

    /// Appends bytes. What finds no room is `EIO`; the callers see to it that all does.
    ///
    /// # Errors
    /// When there is no room.
    pub fn put(&mut self, bytes: &[u8]) -> Result<(), Errno> {
        self.room(bytes.len())?.copy_from_slice(bytes);
        self.length += bytes.len();
        Ok(())
    }

    /// Appends numbers of 32 bits.
    ///
    /// # Errors
    /// When there is no room.
    pub fn put_u32(&mut self, numbers: &[u32]) -> Result<(), Errno> {
        numbers.iter().try_for_each(|number| self.put(&number.to_le_bytes()))
    }

    /// Appends numbers of 64 bits.
    ///
    /// # Errors
    /// When there is no room.
    pub fn put_u64(&mut self, numbers: &[u64]) -> Result<(), Errno> {
        numbers.iter().try_for_each(|number| self.put(&number.to_le_bytes()))
    }

    /// Appends zeros.
    ///
    /// # Errors
    /// When there is no room.
    pub fn put_zeros(&mut self, length: usize) -> Result<(), Errno> {
        self.room(length)?.fill(0);
        self.length += length;
        Ok(())
    }

    /// Appends what `fill` puts into the next `size` bytes: as many as it says.
    ///
    /// # Errors
    /// `EINVAL` when so many may not be in a reply, and what `fill` says.
    pub fn fill(
        &mut self,
        size: u32,
        fill: impl FnOnce(&mut [u8]) -> Result<usize, Errno>,
    ) -> Result<(), Errno> {
        let size = usize::try_from(size).ok().filter(|size| *size <= self.data).ok_or(Errno::INVAL)?;
        let filled = fill(self.room(size)?)?;
        self.length += filled.min(size);
        Ok(())
    }

    /// `struct fuse_entry_out`: what a name is, and that it is believed for a while.
    ///
    /// # Errors
    /// When there is no room.
    pub fn put_entry(&mut self, node: u64, ino: u64, stat: &Stat) -> Result<(), Errno> {
        self.put_u64(&[node, 0, VALID_SECONDS, VALID_SECONDS])?;
        self.put_u32(&[0, 0])?;
        self.put_attr(ino, stat)
    }

    /// `struct fuse_attr_out`.
    ///
    /// # Errors
    /// When there is no room.
    pub fn put_attributes(&mut self, ino: u64, stat: &Stat) -> Result<(), Errno> {
        self.put_u64(&[VALID_SECONDS])?;
        self.put_u32(&[0, 0])?;
        self.put_attr(ino, stat)
    }

    /// `struct fuse_attr`.
    fn put_attr(&mut self, ino: u64, stat: &Stat) -> Result<(), Errno> {
        let nanoseconds = |number: u64| u32::try_from(number).unwrap_or(0);
        self.put_u64(&[
            ino,
            stat.st_size.cast_unsigned(),
            stat.st_blocks.cast_unsigned(),
            stat.st_atime.cast_unsigned(),
            stat.st_mtime.cast_unsigned(),
            stat.st_ctime.cast_unsigned(),
        ])?;
        self.put_u32(&[
            nanoseconds(stat.st_atime_nsec),
            nanoseconds(stat.st_mtime_nsec),
            nanoseconds(stat.st_ctime_nsec),
            stat.st_mode,
            u32::try_from(stat.st_nlink).unwrap_or(u32::MAX),
            stat.st_uid,
            stat.st_gid,
            encode_device(stat.st_rdev),
            u32::try_from(stat.st_blksize).unwrap_or(4096),
            0,
        ])
    }

    /// `struct fuse_open_out`.
    ///
    /// # Errors
    /// When there is no room.
    pub fn put_handle(&mut self, handle: u64) -> Result<(), Errno> {
        self.put_u64(&[handle])?;
        self.put_u32(&[0, 0])
    }

    /// `struct fuse_write_out`, and `fuse_getxattr_out`, which looks the same.
    ///
    /// # Errors
    /// When there is no room.
    pub fn put_size(&mut self, size: usize) -> Result<(), Errno> {
        self.put_u32(&[u32::try_from(size).unwrap_or(u32::MAX), 0])
    }

    /// The finished packet: that the request `unique` came out so. One that failed has a header only.
    #[must_use]
    pub fn finish(self, unique: u64, result: Result<(), Errno>) -> &'a [u8] {
        let (length, error) = match result {
            Ok(()) => (self.length, 0),
            Err(errno) => (OUT_HEADER, errno.raw_os_error().saturating_neg()),
        };
        let header = header(length, error, unique);
        let Some(packet) = self.buffer.get_mut(..length) else { return &[] };
        if let Some(place) = packet.get_mut(..OUT_HEADER) {
            place.copy_from_slice(&header);
        }
        packet
    }

    fn room(&mut self, length: usize) -> Result<&mut [u8], Errno> {
        self.buffer.get_mut(self.length..).and_then(|rest| rest.get_mut(..length)).ok_or(Errno::IO)
    }
}

/// `struct fuse_out_header`.
fn header(length: usize, error: i32, unique: u64) -> [u8; OUT_HEADER] {
    let [l0, l1, l2, l3] = u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes();
    let [e0, e1, e2, e3] = error.to_le_bytes();
    let [u0, u1, u2, u3, u4, u5, u6, u7] = unique.to_le_bytes();
    [l0, l1, l2, l3, e0, e1, e2, e3, u0, u1, u2, u3, u4, u5, u6, u7]
}

/// That what the finished packet `reply` answers has failed after all.
#[must_use]
pub fn failure(reply: &[u8], errno: Errno) -> [u8; OUT_HEADER] {
    let unique = reply.get(8..).and_then(<[u8]>::first_chunk).map_or(0, |unique| u64::from_le_bytes(*unique));
    header(OUT_HEADER, errno.raw_os_error().saturating_neg(), unique)
}

/// A device's number as the protocol has it: `new_encode_dev` of the kernel.
fn encode_device(device: u64) -> u32 {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    minor & 0xff | major << 8 | (minor & !0xff) << 12
}
