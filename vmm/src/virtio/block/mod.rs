//! A block device (virtio 1.3 §5.2) over any [`Storage`].
//!
//! What needs no waiting, such as reading what the host has cached, is done at once by the thread that owns the device;
//! the rest by a few threads of the disk's own ([`workers`]), several requests at a time and in no particular order, as
//! the specification allows.

pub mod extents;
pub mod file;
pub mod request;
pub mod scratch;
mod workers;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use super::buffers::Buffers;
use super::queue::{Budget, Chain, Malformed, QueueSpec, Verdict, Virtqueue};
use super::{Description, Device};
use crate::event::{Mailbox, Readiness, Registrar};
use request::{Kind, Range, Request, SECTOR};
use workers::Workers;

const ID: u32 = 2;
const QUEUE: QueueSpec = QueueSpec {
    size: 256,
    // The request's own limit is told from a malformed chain, because it leaves room for an answer.
    max_chain_bytes: usize::MAX,
    // Whoever waits for a request goes on while the next one is served.
    signal_every: 1,
    malformed: Malformed::Break,
};
/// Requests looked at before others get their turn.
const BUDGET: u16 = 64;
/// Most bytes that the device's own thread moves for one request.
const MAX_BYTES_AT_ONCE: usize = 128 << 10;
/// Most requests that wait for the disk or for a thread.
const MAX_IN_FLIGHT: usize = 64;

/// Pause before a change for which the node's disk had no room is tried again.
const ROOM_PAUSE: Duration = if cfg!(test) { Duration::from_millis(5) } else { Duration::from_millis(250) };

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

/// Whether a call may wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// It may not: what would have to wait fails with [`io::ErrorKind::WouldBlock`].
    None,
    /// It may, as long as it takes.
    Any,
}

/// What a disk is made of, used by several threads at a time. Offsets and lengths are in bytes and lie within the
/// capacity.
pub trait Storage: Send + Sync {
    /// Size in bytes, a multiple of the sector size.
    fn capacity(&self) -> u64;

    /// Whether the guest is told that it may not write. If it may, discard and write-zeroes are offered as well.
    fn is_read_only(&self) -> bool;

    /// Fills `buffers` from `offset` on.
    ///
    /// # Errors
    /// When there is nothing at that place, or reading fails.
    fn read(&self, buffers: &Buffers, offset: u64, patience: Patience) -> io::Result<()>;

    /// Stores `buffers` from `offset` on.
    ///
    /// # Errors
    /// When there is nothing writable at that place, or writing fails.
    fn write(&self, buffers: &Buffers, offset: u64, patience: Patience) -> io::Result<()>;

    /// Makes finished writes as durable as the disk promises to be.
    ///
    /// # Errors
    /// When the host cannot.
    fn flush(&self, patience: Patience) -> io::Result<()>;

    /// Drops the contents of a range.
    ///
    /// # Errors
    /// When the host cannot.
    fn discard(&self, offset: u64, length: u64) -> io::Result<()>;

    /// Makes a range read as zeros, giving its space back if `unmap`.
    ///
    /// # Errors
    /// When the host cannot.
    fn write_zeroes(&self, offset: u64, length: u64, unmap: bool) -> io::Result<()>;
}

/// A disk.
pub struct Block {
    disk: Arc<Disk>,
    queue: Option<Virtqueue>,
    workers: Workers<Job>,
    /// What the workers have done.
    done: Arc<Mailbox<Job>>,
    in_flight: usize,
    /// Whether chains were left in the queue because too many are in flight.
    stalled: bool,
    spare: Job,
}

/// What all threads of a disk share.
struct Disk {
    name: &'static str,
    storage: Box<dyn Storage>,
    /// A driver waits for its requests.
    in_use: AtomicBool,
}

/// A request under way.
struct Job {
    chain: Chain,
    request: Request,
    data: Buffers,
    status: u8,
}

impl Default for Job {
    fn default() -> Self {
        let request = Request { kind: Kind::Invalid, status_offset: 0 };
        Self { chain: Chain::default(), request, data: Buffers::new(), status: request::STATUS_IO_ERROR }
    }
}

impl Job {
    /// Puts the status where the driver looks for it; returns how many bytes were written, with the status.
    fn answer(&self, chain: &Chain) -> u32 {
        chain.writable.write(self.request.status_offset, &[self.status]);
        u32::try_from(self.request.status_offset + 1).unwrap_or(u32::MAX)
    }
}

impl std::fmt::Debug for Block {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Block").field("name", &self.disk.name).finish_non_exhaustive()
    }
}

impl Block {
    /// A disk called `name`, which is also its serial number in the guest (at most 20 bytes).
    ///
    /// # Errors
    /// When the process has no descriptors left.
    pub fn new(name: &'static str, storage: Box<dyn Storage>) -> io::Result<Self> {
        let disk = Arc::new(Disk { name, storage, in_use: AtomicBool::new(true) });
        let done = Mailbox::new()?;
        let (worked_at, finished) = (Arc::clone(&disk), Arc::clone(&done));
        let workers = Workers::new(name, move |mut job: Job| {
            job.status = worked_at.see_through(&job.request, &job.data);
            finished.send(job);
        });
        let spare = Job::default();
        Ok(Self { disk, queue: None, workers, done, in_flight: 0, stalled: false, spare })
    }

    fn serve_queue(&mut self) {
        let Some(mut queue) = self.queue.take() else { return };
        self.stalled = false;
        queue.serve(&mut Budget::new(BUDGET), |chain| self.serve_chain(chain));
        self.queue = Some(queue);
    }

    fn serve_chain(&mut self, chain: &mut Chain) -> Verdict {
        if self.in_flight >= MAX_IN_FLIGHT {
            // Goes on when one of them is done.
            self.stalled = true;
            return Verdict::PutBack;
        }
        let job = &mut self.spare;
        let capacity = self.disk.storage.capacity();
        let Some(request) = Request::parse(chain, capacity, MAX_REQUEST_BYTES, &mut job.data) else {
            return Verdict::Broken;
        };
        job.request = request;
        let now = job.data.len() <= MAX_BYTES_AT_ONCE;
        let status = if now { self.disk.perform_at_once(&request, &job.data) } else { None };
        if let Some(status) = status {
            job.status = status;
            return Verdict::Used(job.answer(chain));
        }
        std::mem::swap(&mut job.chain, chain);
        self.in_flight += 1;
        self.workers.submit(std::mem::take(job));
        Verdict::Kept
    }

    /// Gives the requests back that the workers have finished.
    fn finish(&mut self) {
        for job in self.done.receive() {
            self.in_flight = self.in_flight.saturating_sub(1);
            // Without a queue the device was reset meanwhile.
            if let Some(queue) = &mut self.queue {
                let written = job.answer(&job.chain);
                queue.give_back(job.chain.head, written);
            }
            self.spare = job;
        }
        if self.stalled {
            self.serve_queue();
        }
    }
}

impl Disk {
    /// Serves a request if that needs no waiting; returns its status.
    fn perform_at_once(&self, request: &Request, data: &Buffers) -> Option<u8> {
        match self.attempt(request, data, Patience::None) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock || has_no_room(&error) => None,
            done => Some(status(done)),
        }
    }

    /// Serves a request, however long that takes; returns its status.
    ///
    /// A change for which the node's disk has no room waits until there is some. An error would spoil the guest's file system
    /// for the rest of its life, although the node is soon better: its kubelet evicts pods when it runs out of space.
    fn see_through(&self, request: &Request, data: &Buffers) -> u8 {
        loop {
            match self.attempt(request, data, Patience::Any) {
                Err(error) if has_no_room(&error) && self.in_use.load(Ordering::Relaxed) => {
                    thread::sleep(ROOM_PAUSE);
                }
                done => return status(done),
            }
        }
    }

    fn attempt(&self, request: &Request, data: &Buffers, patience: Patience) -> io::Result<()> {
        let storage = &*self.storage;
        match request.kind {
            Kind::Read { offset } => storage.read(data, offset, patience),
            Kind::Write { .. } | Kind::Discard | Kind::WriteZeroes if storage.is_read_only() => {
                Err(io::ErrorKind::PermissionDenied.into())
            }
            Kind::Write { offset } => storage.write(data, offset, patience),
            Kind::Flush => storage.flush(patience),
            Kind::Discard | Kind::WriteZeroes if patience == Patience::None => {
                Err(io::ErrorKind::WouldBlock.into())
            }
            Kind::Discard => self.for_each_range(data, |range| {
                // A discard with flags is reserved (virtio 1.3 §5.2.6.1).
                if range.unmap {
                    return Err(io::ErrorKind::Unsupported.into());
                }
                storage.discard(range.offset, range.length)
            }),
            Kind::WriteZeroes => self
                .for_each_range(data, |range| storage.write_zeroes(range.offset, range.length, range.unmap)),
            Kind::Identify => {
                let mut serial = [0u8; 20];
                for (target, source) in serial.iter_mut().zip(self.name.bytes()) {
                    *target = source;
                }
                data.write(0, &serial);
                Ok(())
            }
            Kind::Invalid => Err(io::ErrorKind::InvalidInput.into()),
            Kind::Unknown => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    fn for_each_range(&self, data: &Buffers, act: impl Fn(Range) -> io::Result<()>) -> io::Result<()> {
        let ranges = request::ranges(data, self.storage.capacity(), MAX_RANGES, MAX_RANGE_SECTORS)?;
        ranges.into_iter().try_for_each(act)
    }
}

fn status(done: io::Result<()>) -> u8 {
    match done {
        Ok(()) => request::STATUS_OK,
        Err(error) if error.kind() == io::ErrorKind::Unsupported => request::STATUS_UNSUPPORTED,
        Err(_) => request::STATUS_IO_ERROR,
    }
}

/// Whether the node's file system is full, or the quota on it is used up.
fn has_no_room(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
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
    fn describe(&self) -> Description {
        let storage = &*self.disk.storage;
        let access = if storage.is_read_only() { F_READ_ONLY } else { F_DISCARD | F_WRITE_ZEROES };
        Description {
            name: self.disk.name,
            id: ID,
            features: F_SEG_MAX | F_FLUSH | access,
            queues: vec![QUEUE],
            config: config(storage.capacity() / SECTOR).into(),
            ..Description::default()
        }
    }

    fn attach(&mut self, registrar: Registrar) -> io::Result<()> {
        registrar.add_readable(&*self.done, 0)
    }

    fn activate(&mut self, _features: u64, queues: Vec<Option<Virtqueue>>) {
        self.queue = queues.into_iter().next().flatten();
        self.disk.in_use.store(true, Ordering::Relaxed);
    }

    fn reset(&mut self) {
        self.queue = None;
        self.disk.in_use.store(false, Ordering::Relaxed);
        self.stalled = false;
        self.spare = Job::default();
        // What has begun has to come to its end; the rest nobody wants any more.
        self.in_flight = self.in_flight.saturating_sub(self.workers.forget());
    }

    fn serve(&mut self, _queue: usize) {
        self.serve_queue();
    }

    fn event(&mut self, _token: u32, _readiness: Readiness) {
        self.finish();
    }

    fn in_flight(&self) -> usize {
        self.in_flight
    }
}

#[cfg(test)]
mod tests;
