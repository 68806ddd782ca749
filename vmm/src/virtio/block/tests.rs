use std::os::unix::fs::FileExt;
use std::sync::atomic::AtomicUsize;
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use vm_memory::{Bytes, GuestAddress};

use super::request::{STATUS_IO_ERROR, STATUS_OK, STATUS_UNSUPPORTED};
use super::scratch::Scratch;
use super::*;
use crate::event::Poller;
use crate::machine::memory::{self, GuestMemory};
use crate::virtio::testing::{Driver, SIZE};

const HEADER: GuestAddress = GuestAddress(0x1000);
const DATA: GuestAddress = GuestAddress(0x2000);
const STATUS: GuestAddress = GuestAddress(0x8000);
const DISK_BYTES: u64 = 1 << 20;
const LARGE: u64 = 0x100_0000;

struct Disk {
    memory: GuestMemory,
    block: Block,
    driver: Driver,
    poller: Poller,
    file: std::fs::File,
}

impl Disk {
    fn new() -> Self {
        let file = tempfile::tempfile().unwrap();
        file.set_len(DISK_BYTES).unwrap();
        let storage = Scratch::new(file.try_clone().unwrap()).unwrap();
        Self::on("scratch", Box::new(storage), file)
    }

    fn on(name: &'static str, storage: Box<dyn Storage>, file: std::fs::File) -> Self {
        let memory = memory::allocate(64).unwrap();
        let driver = Driver::at(&memory, 0x10_0000);
        let poller = Poller::new().unwrap();
        let mut block = Block::new(name, storage).unwrap();
        block.attach(poller.registrar(0)).unwrap();
        block.activate(0, vec![Some(driver.queue_as(QUEUE))]);
        Self { memory, block, driver, poller, file }
    }

    /// Lets the device work until it has given something back.
    fn run(&mut self) -> Vec<(u32, u32)> {
        self.block.serve(0);
        loop {
            let used = self.driver.used();
            if !used.is_empty() {
                return used;
            }
            self.land();
        }
    }

    /// Waits for a worker and lets the device see what it did.
    fn land(&mut self) {
        let events = self.poller.wait(Some(20_000)).unwrap();
        assert_eq!(events.len(), 1);
        self.block.event(events[0].token, events[0].readiness);
    }

    fn put_header(&self, at: GuestAddress, kind: u32, sector: u64) {
        self.memory.write_obj(kind, at).unwrap();
        self.memory.write_obj(0u32, GuestAddress(at.0 + 4)).unwrap();
        self.memory.write_obj(sector, GuestAddress(at.0 + 8)).unwrap();
    }

    /// Sends a request with `readable` and `writable` bytes of data; returns its status.
    fn request(&mut self, kind: u32, sector: u64, readable: u32, writable: u32) -> u8 {
        self.put_header(HEADER, kind, sector);
        self.memory.write_obj(0xffu8, STATUS).unwrap();
        let (mut read, mut written) = (vec![(HEADER.0, 16)], vec![(DATA.0, writable), (STATUS.0, 1)]);
        if readable > 0 {
            read.push((DATA.0, readable));
        }
        if writable == 0 {
            written.remove(0);
        }
        let head = self.driver.add(&read, &written);
        assert_eq!(self.run(), [(u32::from(head), writable + 1)]);
        self.memory.read_obj(STATUS).unwrap()
    }

    fn range(&mut self, kind: u32, sector: u64, sectors: u32, flags: u32) -> u8 {
        self.memory.write_obj(sector, DATA).unwrap();
        self.memory.write_obj(sectors, GuestAddress(DATA.0 + 8)).unwrap();
        self.memory.write_obj(flags, GuestAddress(DATA.0 + 12)).unwrap();
        self.request(kind, 0, 16, 0)
    }
}

#[test]
fn what_is_written_is_read_back() {
    let mut disk = Disk::new();
    disk.memory.write_slice(&[0x5a; 1024], DATA).unwrap();
    assert_eq!(disk.request(1, 3, 1024, 0), STATUS_OK);
    disk.memory.write_slice(&[0; 1024], DATA).unwrap();
    assert_eq!(disk.request(0, 3, 0, 1024), STATUS_OK);
    let mut read = [0; 1024];
    disk.memory.read_slice(&mut read, DATA).unwrap();
    assert_eq!(read, [0x5a; 1024]);
    assert_eq!(disk.request(4, 0, 0, 0), STATUS_OK);
}

#[test]
fn requests_beyond_the_disk_or_of_part_sectors_are_errors() {
    let mut disk = Disk::new();
    let last = DISK_BYTES / 512 - 1;
    assert_eq!(disk.request(0, last, 0, 512), STATUS_OK);
    for (kind, sector, readable, writable) in [
        (0, last, 0, 1024),
        (0, last + 1, 0, 512),
        (0, u64::MAX, 0, 512),
        (0, u64::MAX / 512, 0, 512),
        (1, u64::MAX / 512 + 1, 512, 0),
        (0, 0, 0, 511),
        (0, 0, 0, 0),
        (1, 0, 100, 0),
        (1, 0, 0, 0),
    ] {
        assert_eq!(disk.request(kind, sector, readable, writable), STATUS_IO_ERROR, "{kind} at {sector}");
    }
}

#[test]
fn unknown_types_and_scsi_are_unsupported() {
    let mut disk = Disk::new();
    for kind in [2, 3, 5, 7, 9, 10, 12, 14, 16, u32::MAX] {
        assert_eq!(disk.request(kind, 0, 0, 0), STATUS_UNSUPPORTED, "{kind}");
    }
}

#[test]
fn the_serial_number_is_the_name() {
    let mut disk = Disk::new();
    assert_eq!(disk.request(8, 0, 0, 20), STATUS_OK);
    let mut read = [0; 20];
    disk.memory.read_slice(&mut read, DATA).unwrap();
    assert_eq!(&read, b"scratch\0\0\0\0\0\0\0\0\0\0\0\0\0");
    assert_eq!(disk.request(8, 0, 0, 19), STATUS_IO_ERROR);
}

#[test]
fn discarded_and_zeroed_ranges_read_as_zeros() {
    let mut disk = Disk::new();
    disk.file.write_all_at(&[7; 16384], 0).unwrap();
    assert_eq!(disk.range(11, 0, 8, 0), STATUS_OK);
    assert_eq!(disk.range(13, 16, 8, 0), STATUS_OK);
    assert_eq!(disk.range(13, 24, 8, 1), STATUS_OK);
    let mut read = [9; 16384];
    disk.file.read_exact_at(&mut read, 0).unwrap();
    assert_eq!([read[0], read[4096], read[8192], read[12288]], [0, 7, 0, 0]);
    assert_eq!(disk.file.metadata().unwrap().len(), DISK_BYTES);
}

#[test]
fn impossible_ranges_are_refused_before_anything_is_done() {
    let mut disk = Disk::new();
    let sectors = DISK_BYTES / 512;
    assert_eq!(disk.range(13, u64::MAX, 8, 0), STATUS_IO_ERROR);
    assert_eq!(disk.range(13, u64::MAX / 512, 8, 0), STATUS_IO_ERROR);
    assert_eq!(disk.range(11, sectors - 1, 2, 0), STATUS_IO_ERROR);
    assert_eq!(disk.range(11, 0, 0, 0), STATUS_IO_ERROR);
    assert_eq!(disk.range(11, 0, u32::MAX, 0), STATUS_IO_ERROR);
    assert_eq!(disk.range(11, 0, 8, 1), STATUS_UNSUPPORTED);
    assert_eq!(disk.range(13, 0, 8, 2), STATUS_UNSUPPORTED);
    assert_eq!(disk.request(11, 0, 15, 0), STATUS_IO_ERROR);
    assert_eq!(disk.request(13, 0, 17 * 16, 0), STATUS_IO_ERROR);
}

#[test]
fn a_request_without_a_header_or_too_large_fails_where_the_driver_looks() {
    let mut disk = Disk::new();
    let short = disk.driver.add(&[(HEADER.0, 15)], &[(STATUS.0, 1)]);
    assert_eq!(disk.run(), [(u32::from(short), 1)]);
    assert_eq!(disk.memory.read_obj::<u8>(STATUS).unwrap(), STATUS_IO_ERROR);

    let most = MAX_REQUEST_BYTES as u32;
    for (readable, writable) in [(most + 512, 0), (0, most + 512)] {
        disk.put_header(HEADER, u32::from(readable > 0), 0);
        disk.memory.write_obj(STATUS_OK, STATUS).unwrap();
        let head = disk.driver.add(&[(HEADER.0, 16), (LARGE, readable)], &[(LARGE, writable), (STATUS.0, 1)]);
        assert_eq!(disk.run(), [(u32::from(head), writable + 1)]);
        assert_eq!(disk.memory.read_obj::<u8>(STATUS).unwrap(), STATUS_IO_ERROR);
    }
    assert!(!disk.driver.interrupt.is_reset_needed());
    assert_eq!(disk.request(0, 0, 0, 512), STATUS_OK);
}

#[test]
fn a_chain_without_room_for_a_status_asks_for_a_reset() {
    let outside = (64 << 20, 1);
    for (readable, writable) in
        [((HEADER.0, 16), None), ((HEADER.0, 16), Some(outside)), (outside, Some((STATUS.0, 1)))]
    {
        let mut disk = Disk::new();
        disk.put_header(HEADER, 4, 0);
        disk.driver.add(&[readable], &Vec::from_iter(writable));
        disk.block.serve(0);
        assert!(disk.driver.used().is_empty());
        assert!(disk.driver.interrupt.is_reset_needed());
    }
}

#[test]
fn a_read_only_disk_refuses_every_change() {
    let file = tempfile::tempfile().unwrap();
    let mut disk = Disk::on("layers", Box::new(extents::Extents::new(true)), file);
    let features = disk.block.describe().features;
    assert_ne!(features & F_READ_ONLY, 0);
    assert_eq!(features & (F_DISCARD | F_WRITE_ZEROES), 0);
    assert_eq!(disk.request(1, 0, 512, 0), STATUS_IO_ERROR);
    assert_eq!(disk.range(11, 0, 8, 0), STATUS_IO_ERROR);
    assert_eq!(disk.range(13, 0, 8, 0), STATUS_IO_ERROR);
}

#[test]
fn a_flush_of_the_scratch_disk_waits_for_nothing() {
    // A file that cannot be flushed tells if it is asked to.
    let file = std::fs::File::open("/dev/null").unwrap();
    file.sync_data().unwrap_err();
    let storage = Scratch::new(file.try_clone().unwrap()).unwrap();
    let mut disk = Disk::on("scratch", Box::new(storage), file);
    disk.put_header(HEADER, 4, 0);
    disk.driver.add(&[(HEADER.0, 16)], &[(STATUS.0, 1)]);
    disk.memory.write_obj(0xffu8, STATUS).unwrap();
    disk.block.serve(0);
    assert_eq!(disk.driver.used().len(), 1, "done by the device's own thread");
    assert_eq!(disk.memory.read_obj::<u8>(STATUS).unwrap(), STATUS_OK);
}

/// A disk on which every read waits for the test.
#[derive(Clone, Default)]
struct Slow(Arc<(Mutex<State>, Condvar)>);

#[derive(Default)]
struct State {
    waiting: Vec<u64>,
    let_go: Vec<u64>,
}

impl Slow {
    /// Waits until that many reads wait for the disk; returns their offsets, sorted.
    fn waiting(&self, count: usize) -> Vec<u64> {
        let (state, changed) = &*self.0;
        let too_few = |state: &mut State| state.waiting.len() < count;
        let guard = state.lock().unwrap();
        let (guard, _) = changed.wait_timeout_while(guard, Duration::from_secs(20), too_few).unwrap();
        let mut waiting = guard.waiting.clone();
        waiting.sort_unstable();
        waiting
    }

    fn let_go(&self, offset: u64) {
        self.0.0.lock().unwrap().let_go.push(offset);
        self.0.1.notify_all();
    }
}

impl Storage for Slow {
    fn capacity(&self) -> u64 {
        DISK_BYTES
    }

    fn is_read_only(&self) -> bool {
        true
    }

    fn read(&self, _buffers: &Buffers, offset: u64, patience: Patience) -> io::Result<()> {
        if patience == Patience::None {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let (state, changed) = &*self.0;
        let mut guard = state.lock().unwrap();
        guard.waiting.push(offset);
        changed.notify_all();
        let held = |state: &mut State| !state.let_go.contains(&offset);
        let (mut guard, _) = changed.wait_timeout_while(guard, Duration::from_secs(20), held).unwrap();
        guard.waiting.retain(|waiting| *waiting != offset);
        Ok(())
    }

    fn write(&self, _: &Buffers, _: u64, _: Patience) -> io::Result<()> {
        unreachable!()
    }

    fn flush(&self, _: Patience) -> io::Result<()> {
        Ok(())
    }

    fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        unreachable!()
    }

    fn write_zeroes(&self, _: u64, _: u64, _: bool) -> io::Result<()> {
        unreachable!()
    }
}

impl Disk {
    fn slow() -> (Self, Slow) {
        let slow = Slow::default();
        (Self::on("slow", Box::new(slow.clone()), tempfile::tempfile().unwrap()), slow)
    }

    /// Asks for one sector, with a header and a status of its own; returns the chain's head.
    fn read(&mut self, sector: u64) -> u16 {
        let header = GuestAddress(HEADER.0 + sector % 64 * 16);
        self.put_header(header, 0, sector);
        self.driver.add(&[(header.0, 16)], &[(DATA.0, 512), (STATUS.0 + sector, 1)])
    }
}

#[test]
fn several_requests_wait_for_a_slow_disk_and_others_overtake_them() {
    let (mut disk, slow) = Disk::slow();
    let heads = [disk.read(1), disk.read(2), disk.read(3)];
    disk.block.serve(0);
    assert_eq!(slow.waiting(3), [512, 1024, 1536]);
    assert_eq!(disk.block.in_flight(), 3);
    assert!(disk.driver.used().is_empty());
    // What needs no disk does not wait for one.
    disk.put_header(GuestAddress(0x7000), 8, 0);
    let identify = disk.driver.add(&[(0x7000, 16)], &[(0x7100, 20), (STATUS.0, 1)]);
    assert_eq!(disk.run(), [(u32::from(identify), 21)]);
    for (sector, head) in [(3, heads[2]), (1, heads[0]), (2, heads[1])] {
        slow.let_go(sector * 512);
        assert_eq!(disk.run(), [(u32::from(head), 513)]);
        assert_eq!(disk.memory.read_obj::<u8>(GuestAddress(STATUS.0 + sector)).unwrap(), STATUS_OK);
    }
    assert_eq!(disk.block.in_flight(), 0);
}

#[test]
fn a_device_that_is_reset_has_requests_in_flight_until_the_disk_has_answered() {
    let (mut disk, slow) = Disk::slow();
    disk.read(1);
    disk.block.serve(0);
    slow.waiting(1);
    disk.block.reset();
    assert_eq!(disk.block.in_flight(), 1);
    slow.let_go(512);
    disk.land();
    assert_eq!(disk.block.in_flight(), 0);
    assert!(disk.driver.used().is_empty(), "the queue is the driver's again");
}

#[test]
fn a_device_that_is_reset_forgets_the_requests_that_no_thread_has_begun() {
    let (mut disk, slow) = Disk::slow();
    let sectors = 1..=workers::MOST as u64 + 2;
    for sector in sectors.clone() {
        disk.read(sector);
    }
    disk.block.serve(0);
    slow.waiting(workers::MOST);
    disk.block.reset();
    assert_eq!(disk.block.in_flight(), workers::MOST);
    for sector in sectors {
        slow.let_go(sector * 512);
    }
    while disk.block.in_flight() > 0 {
        disk.land();
    }
}

#[test]
fn requests_beyond_the_bound_stay_in_the_queue_until_others_are_done() {
    let (mut disk, slow) = Disk::slow();
    let head = disk.read(1);
    // The guest offers the same chain again and again, without waiting for it.
    disk.block.serve(0);
    for round in 1..MAX_IN_FLIGHT + 8 {
        disk.driver.offer(head);
        if round % usize::from(SIZE / 2) == 0 {
            disk.block.serve(0);
        }
    }
    assert_eq!(disk.block.in_flight(), MAX_IN_FLIGHT);
    slow.let_go(512);
    let mut done = 0;
    while done < MAX_IN_FLIGHT + 8 {
        disk.land();
        done += disk.driver.used().len();
    }
    assert_eq!(disk.block.in_flight(), 0);
}

/// A disk on a node that has no room for what is written.
#[derive(Clone, Default)]
struct Cramped {
    tries: Arc<AtomicUsize>,
    room: Arc<AtomicBool>,
}

impl Storage for Cramped {
    fn capacity(&self) -> u64 {
        DISK_BYTES
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn read(&self, _: &Buffers, _: u64, _: Patience) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, _: &Buffers, offset: u64, _: Patience) -> io::Result<()> {
        self.write_zeroes(offset, 0, false)
    }

    fn flush(&self, _: Patience) -> io::Result<()> {
        Ok(())
    }

    fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        self.write_zeroes(offset, length, true)
    }

    fn write_zeroes(&self, _: u64, _: u64, _: bool) -> io::Result<()> {
        self.tries.fetch_add(1, Ordering::Relaxed);
        if self.room.load(Ordering::Relaxed) { Ok(()) } else { Err(io::ErrorKind::StorageFull.into()) }
    }
}

impl Disk {
    /// A disk without room, and a request of this type and one range or sector that a few tries have been made at.
    fn cramped(kind: u32) -> (Self, Cramped, u16) {
        let cramped = Cramped::default();
        let mut disk = Self::on("cramped", Box::new(cramped.clone()), tempfile::tempfile().unwrap());
        disk.put_header(HEADER, kind, 0);
        disk.memory.write_obj(8u32, GuestAddress(DATA.0 + 8)).unwrap();
        let head =
            disk.driver.add(&[(HEADER.0, 16), (DATA.0, if kind == 1 { 512 } else { 16 })], &[(STATUS.0, 1)]);
        disk.block.serve(0);
        while cramped.tries.load(Ordering::Relaxed) < 4 {
            thread::yield_now();
        }
        assert!(disk.driver.used().is_empty());
        assert_eq!(disk.block.in_flight(), 1);
        (disk, cramped, head)
    }
}

#[test]
fn changes_wait_for_room_on_the_nodes_disk() {
    for kind in [1, 11, 13] {
        let (mut disk, cramped, head) = Disk::cramped(kind);
        // What needs no room goes on.
        disk.put_header(GuestAddress(0x7000), 0, 1);
        let read = disk.driver.add(&[(0x7000, 16)], &[(0x7100, 512), (STATUS.0 + 1, 1)]);
        assert_eq!(disk.run(), [(u32::from(read), 513)]);
        cramped.room.store(true, Ordering::Relaxed);
        assert_eq!(disk.run(), [(u32::from(head), 1)]);
        assert_eq!(disk.memory.read_obj::<u8>(STATUS).unwrap(), STATUS_OK);
    }
}

#[test]
fn a_device_that_is_reset_waits_for_no_room() {
    let (mut disk, cramped, _) = Disk::cramped(1);
    disk.block.reset();
    disk.land();
    assert_eq!(disk.block.in_flight(), 0);
    assert!(!cramped.room.load(Ordering::Relaxed));
}
