//! The headers that every FUSE message begins with (`include/uapi/linux/fuse.h`): all that the device knows of messages.

use crate::virtio::buffers::Buffers;

/// `struct fuse_in_header`.
pub(super) const REQUEST_HEADER: usize = 40;
/// `struct fuse_out_header`.
pub(super) const REPLY_HEADER: usize = 16;
/// Where `unique` is in a request's header.
const REQUEST_UNIQUE: usize = 8;

/// Errors that a reply may carry are greater than this; the kernel keeps what is beyond to itself.
const LEAST_ERROR: i32 = -512;

/// The number by which a reply names the request in `readable`; `None` for a request that is shorter than its header or not
/// as long as it says.
pub(super) fn request(readable: &Buffers) -> Option<u64> {
    let mut header = [0; REQUEST_HEADER];
    if readable.read(0, &mut header) < REQUEST_HEADER {
        return None;
    }
    let length = u32::from_le_bytes(*header.first_chunk()?);
    let unique = u64::from_le_bytes(*header.get(REQUEST_UNIQUE..)?.first_chunk()?);
    (usize::try_from(length) == Ok(readable.len())).then_some(unique)
}

/// A reply's header (`struct fuse_out_header`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reply {
    /// Length in bytes with this header.
    pub len: u32,
    /// 0, or a negative error number.
    pub error: i32,
    /// The request that it answers.
    pub unique: u64,
}

impl Reply {
    /// That the request `unique` has failed.
    pub fn failure(unique: u64, errno: i32) -> Self {
        Self { len: REPLY_HEADER as u32, error: errno.saturating_neg(), unique }
    }

    /// Reads a header.
    pub fn parse(bytes: &[u8; REPLY_HEADER]) -> Self {
        let [l0, l1, l2, l3, e0, e1, e2, e3, unique @ ..] = *bytes;
        Self {
            len: u32::from_le_bytes([l0, l1, l2, l3]),
            error: i32::from_le_bytes([e0, e1, e2, e3]),
            unique: u64::from_le_bytes(unique),
        }
    }

    /// The header's bytes.
    pub fn encode(&self) -> [u8; REPLY_HEADER] {
        let mut bytes = [0; REPLY_HEADER];
        bytes[..4].copy_from_slice(&self.len.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.error.to_le_bytes());
        bytes[8..].copy_from_slice(&self.unique.to_le_bytes());
        bytes
    }

    /// Whether the error is one that a guest's kernel takes for an error. A driver of virtio-fs does not look, other than the
    /// driver of `/dev/fuse`.
    pub fn has_possible_error(&self) -> bool {
        self.error <= 0 && self.error > LEAST_ERROR
    }
}

/// Answers a request with an error; returns how many bytes were written, none if there is no room.
pub(super) fn fail(writable: &Buffers, unique: u64, errno: i32) -> u32 {
    if writable.len() < REPLY_HEADER {
        return 0;
    }
    writable.write(0, &Reply::failure(unique, errno).encode());
    REPLY_HEADER as u32
}
