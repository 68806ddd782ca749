//! What a guest asks of a disk (virtio 1.3 §5.2.6), checked before anything is done.

use std::io;

use crate::virtio::buffers::Buffers;
use crate::virtio::queue::Chain;

/// Bytes per sector, whatever the disk's block size.
pub const SECTOR: u64 = 512;

/// `VIRTIO_BLK_S_OK`.
pub const STATUS_OK: u8 = 0;
/// `VIRTIO_BLK_S_IOERR`.
pub const STATUS_IO_ERROR: u8 = 1;
/// `VIRTIO_BLK_S_UNSUPP`.
pub const STATUS_UNSUPPORTED: u8 = 2;

const HEADER_BYTES: usize = 16;
const RANGE_BYTES: usize = 16;
const SERIAL_BYTES: usize = 20;

const TYPE_IN: u32 = 0;
const TYPE_OUT: u32 = 1;
const TYPE_FLUSH: u32 = 4;
const TYPE_GET_ID: u32 = 8;
const TYPE_DISCARD: u32 = 11;
const TYPE_WRITE_ZEROES: u32 = 13;

/// The unmap flag of a range.
const FLAG_UNMAP: u32 = 1;

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Read data from a byte offset; offset and length are whole sectors within the disk.
    Read {
        /// Where.
        offset: u64,
    },
    /// Write data; checked like a read.
    Write {
        /// Where.
        offset: u64,
    },
    /// Make writes durable.
    Flush,
    /// Drop ranges.
    Discard,
    /// Zero ranges.
    WriteZeroes,
    /// Tell the serial number.
    Identify,
    /// No whole header, or a known type with impossible parameters.
    Invalid,
    /// A type that is not offered.
    Unknown,
}

/// A request that has room for an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// What to do with the data.
    pub kind: Kind,
    /// Where in the chain's writable part the status byte goes: its last byte.
    pub status_offset: usize,
}

impl Request {
    /// Reads a request from `chain` and gathers its data in `data`. `None` if the chain has no room for a status: there
    /// is no place for an answer. A request without a whole header, or larger than `most` bytes, is invalid.
    #[must_use]
    pub fn parse(chain: &Chain, capacity: u64, most: usize, data: &mut Buffers) -> Option<Self> {
        let status_offset = chain.writable.len().checked_sub(1)?;
        data.clear();
        let kind = Self::kind(chain, status_offset, capacity, most, data).unwrap_or(Kind::Invalid);
        Some(Self { kind, status_offset })
    }

    fn kind(
        chain: &Chain,
        status_offset: usize,
        capacity: u64,
        most: usize,
        data: &mut Buffers,
    ) -> Option<Kind> {
        let mut header = [0; HEADER_BYTES];
        chain.readable.read(0, &mut header);
        let readable = chain.readable.len().checked_sub(HEADER_BYTES)?;
        let kind = u32::from_le_bytes(header.first_chunk().copied()?);
        let sector = u64::from_le_bytes(header.last_chunk().copied()?);
        if readable.max(status_offset) > most {
            return None;
        }
        match kind {
            TYPE_IN => {
                chain.writable.slice_into(0, status_offset, data);
                extent(sector, status_offset, capacity).map(|offset| Kind::Read { offset })
            }
            TYPE_OUT => {
                chain.readable.slice_into(HEADER_BYTES, readable, data);
                extent(sector, readable, capacity).map(|offset| Kind::Write { offset })
            }
            TYPE_FLUSH => Some(Kind::Flush),
            TYPE_GET_ID if status_offset >= SERIAL_BYTES => {
                chain.writable.slice_into(0, status_offset, data);
                Some(Kind::Identify)
            }
            TYPE_GET_ID => None,
            TYPE_DISCARD | TYPE_WRITE_ZEROES => {
                chain.readable.slice_into(HEADER_BYTES, readable, data);
                Some(if kind == TYPE_DISCARD { Kind::Discard } else { Kind::WriteZeroes })
            }
            _ => Some(Kind::Unknown),
        }
    }
}

/// The byte offset of `length` bytes at `sector`, if they are whole sectors within the disk.
fn extent(sector: u64, length: usize, capacity: u64) -> Option<u64> {
    let length = u64::try_from(length).ok()?;
    let offset = sector.checked_mul(SECTOR)?;
    let end = offset.checked_add(length)?;
    (end <= capacity && length > 0 && length.is_multiple_of(SECTOR)).then_some(offset)
}

/// A range to discard or to zero, within the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// First byte.
    pub offset: u64,
    /// Length in bytes, not 0.
    pub length: u64,
    /// Its space may be given back.
    pub unmap: bool,
}

/// Reads and checks all ranges of a request before any of them is acted on.
///
/// # Errors
/// [`io::ErrorKind::Unsupported`] for unknown flags, [`io::ErrorKind::InvalidInput`] for ranges that are too many, too
/// long or not within the disk.
pub fn ranges(data: &Buffers, capacity: u64, max_ranges: u32, max_sectors: u32) -> io::Result<Vec<Range>> {
    let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
    let count = data.len() / RANGE_BYTES;
    if count == 0 || !data.len().is_multiple_of(RANGE_BYTES) || count > max_ranges as usize {
        return Err(invalid());
    }
    let mut ranges = Vec::with_capacity(count);
    for index in 0..count {
        let mut bytes = [0; RANGE_BYTES];
        data.read(index * RANGE_BYTES, &mut bytes);
        let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, f0, f1, f2, f3] = bytes;
        let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
        let sectors = u32::from_le_bytes([n0, n1, n2, n3]);
        let flags = u32::from_le_bytes([f0, f1, f2, f3]);
        if flags & !FLAG_UNMAP != 0 {
            return Err(io::ErrorKind::Unsupported.into());
        }
        if sectors > max_sectors {
            return Err(invalid());
        }
        let length = u64::from(sectors) * SECTOR;
        let offset = sector.checked_mul(SECTOR).ok_or_else(invalid)?;
        if length == 0 || offset.checked_add(length).is_none_or(|end| end > capacity) {
            return Err(invalid());
        }
        ranges.push(Range { offset, length, unmap: flags & FLAG_UNMAP != 0 });
    }
    Ok(ranges)
}
