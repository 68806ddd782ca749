//! A block device (virtio 1.3 §5.2) over any [`Storage`].

pub mod extents;
pub mod request;
pub mod scratch;

use std::io;

use super::Device;
use super::buffers::Buffers;
use super::queue::{Chain, QueueBroken, Virtqueue};
use request::{Kind, Request, SECTOR};

const ID: u32 = 2;
const QUEUES: [u16; 1] = [256];

/// Most data descriptors per request told to the driver; with header and status it fills a queue.
const MAX_SEGMENTS: u32 = 254;
/// Most bytes per request. Drivers stay far below; nothing is copied, but one request should not hold up the rest.
const MAX_REQUEST_BYTES: usize = 32 << 20;
/// Most sectors that one discard or write-zeroes range may cover: 1 GiB.
const MAX_RANGE_SECTORS: u32 = 1 << 21;
/// Most ranges per discard or write-zeroes request.
const MAX_RANGES: u32 = 16;

const F_SEG_MAX: u64 = 1 << 2;
const F_READ_ONLY: u64 = 1 << 5;
const F_FLUSH: u64 = 1 << 9;
const F_DISCARD: u64 = 1 << 13;
const F_WRITE_ZEROES: u64 = 1 << 14;

const CONFIG_BYTES: usize = 60;

/// What a disk is made of. Offsets and lengths are in bytes and lie within the capacity.
pub trait Storage: Send {
    /// Size in bytes, a multiple of the sector size.
    fn capacity(&self) -> u64;

    /// Whether the guest is told that it may not write.
    fn is_read_only(&self) -> bool;

    /// Whether discard and write-zeroes are offered.
    fn can_discard(&self) -> bool;

    /// Fills `buffers` from `offset` on.
    ///
    /// # Errors
    /// When there is nothing at that place, or reading fails.
    fn read(&mut self, buffers: &Buffers, offset: u64) -> io::Result<()>;

    /// Stores `buffers` from `offset` on.
    ///
    /// # Errors
    /// When there is nothing writable at that place, or writing fails.
    fn write(&mut self, buffers: &Buffers, offset: u64) -> io::Result<()>;

    /// Makes finished writes durable.
    ///
    /// # Errors
    /// When the host cannot.
    fn flush(&mut self) -> io::Result<()>;

    /// Drops the contents of a range.
    ///
    /// # Errors
    /// When the host cannot.
    fn discard(&mut self, offset: u64, length: u64) -> io::Result<()>;

    /// Makes a range read as zeros, giving its space back if `unmap`.
    ///
    /// # Errors
    /// When the host cannot.
    fn write_zeroes(&mut self, offset: u64, length: u64, unmap: bool) -> io::Result<()>;
}

/// A disk.
pub struct Block {
    name: &'static str,
    storage: Box<dyn Storage>,
    features: u64,
    config: [u8; CONFIG_BYTES],
    queue: Option<Virtqueue>,
    chain: Chain,
    data: Buffers,
}

impl std::fmt::Debug for Block {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Block").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Block {
    /// A disk called `name`, which is also its serial number in the guest (at most 20 bytes).
    #[must_use]
    pub fn new(name: &'static str, storage: Box<dyn Storage>) -> Self {
        let mut features = F_SEG_MAX | F_FLUSH;
        if storage.is_read_only() {
            features |= F_READ_ONLY;
        }
        if storage.can_discard() {
            features |= F_DISCARD | F_WRITE_ZEROES;
        }
        let config = config(storage.capacity() / SECTOR);
        Self { name, storage, features, config, queue: None, chain: Chain::default(), data: Buffers::new() }
    }

    fn serve(&mut self) -> Result<(), QueueBroken> {
        let Some(mut queue) = self.queue.take() else { return Ok(()) };
        loop {
            queue.pause_notifications();
            while queue.pop(&mut self.chain)? {
                let written = self.execute();
                queue.push_used(self.chain.head, written)?;
                // Whoever waits for this request goes on while the next one is served.
                queue.signal();
            }
            if !queue.resume_notifications() {
                break;
            }
        }
        self.queue = Some(queue);
        Ok(())
    }

    /// Serves the request in `self.chain`; returns how many bytes of it were written, with the status.
    fn execute(&mut self) -> u32 {
        let Some(request) = Request::parse(&self.chain, self.storage.capacity(), &mut self.data) else {
            return 0;
        };
        let status = match self.perform(&request) {
            Ok(()) => request::STATUS_OK,
            Err(error) if error.kind() == io::ErrorKind::Unsupported => request::STATUS_UNSUPPORTED,
            Err(_) => request::STATUS_IO_ERROR,
        };
        self.chain.writable.write(request.status_offset, &[status]);
        u32::try_from(request.status_offset + 1).unwrap_or(u32::MAX)
    }

    fn perform(&mut self, request: &Request) -> io::Result<()> {
        match request.kind {
            Kind::Read { offset } => self.storage.read(&self.data, offset),
            Kind::Write { .. } | Kind::Discard | Kind::WriteZeroes if self.storage.is_read_only() => {
                Err(io::ErrorKind::PermissionDenied.into())
            }
            Kind::Write { offset } => self.storage.write(&self.data, offset),
            Kind::Flush => self.storage.flush(),
            Kind::Discard | Kind::WriteZeroes if !self.storage.can_discard() => {
                Err(io::ErrorKind::Unsupported.into())
            }
            Kind::Discard => self.for_each_range(|storage, range| {
                // A discard with flags is reserved (virtio 1.3 §5.2.6.1).
                if range.unmap {
                    return Err(io::ErrorKind::Unsupported.into());
                }
                storage.discard(range.offset, range.length)
            }),
            Kind::WriteZeroes => self.for_each_range(|storage, range| {
                storage.write_zeroes(range.offset, range.length, range.unmap)
            }),
            Kind::Identify => {
                let mut serial = [0u8; 20];
                for (target, source) in serial.iter_mut().zip(self.name.bytes()) {
                    *target = source;
                }
                self.data.write(0, &serial);
                Ok(())
            }
            Kind::Invalid => Err(io::ErrorKind::InvalidInput.into()),
            Kind::Unknown => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    fn for_each_range(
        &mut self,
        mut act: impl FnMut(&mut dyn Storage, request::Range) -> io::Result<()>,
    ) -> io::Result<()> {
        let ranges = request::ranges(&self.data, self.storage.capacity(), MAX_RANGES, MAX_RANGE_SECTORS)?;
        for range in ranges {
            act(self.storage.as_mut(), range)?;
        }
        Ok(())
    }
}

/// The configuration space (virtio 1.3 §5.2.4).
fn config(sectors: u64) -> [u8; CONFIG_BYTES] {
    let mut config = [0; CONFIG_BYTES];
    let mut put = |offset: usize, bytes: &[u8]| {
        if let Some(field) = config.get_mut(offset..offset + bytes.len()) {
            field.copy_from_slice(bytes);
        }
    };
    put(0, &sectors.to_le_bytes());
    put(12, &MAX_SEGMENTS.to_le_bytes());
    put(36, &MAX_RANGE_SECTORS.to_le_bytes());
    put(40, &MAX_RANGES.to_le_bytes());
    put(44, &8u32.to_le_bytes());
    put(48, &MAX_RANGE_SECTORS.to_le_bytes());
    put(52, &MAX_RANGES.to_le_bytes());
    put(56, &[1]);
    config
}

impl Device for Block {
    fn name(&self) -> &'static str {
        self.name
    }

    fn id(&self) -> u32 {
        ID
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUES
    }

    fn max_chain_bytes(&self, _queue: usize) -> usize {
        MAX_REQUEST_BYTES
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn activate(&mut self, _features: u64, queues: Vec<Option<Virtqueue>>) {
        self.queue = queues.into_iter().next().flatten();
    }

    fn reset(&mut self) {
        self.queue = None;
        self.chain = Chain::default();
        self.data = Buffers::new();
    }

    fn notified(&mut self, _queue: usize) {
        // A broken queue stays taken out; the guest has been told to reset the device.
        let _ = self.serve();
    }
}

#[cfg(test)]
mod tests;
