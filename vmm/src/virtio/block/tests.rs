use std::os::unix::fs::FileExt;

use vm_memory::{Bytes, GuestAddress};

use super::request::{STATUS_IO_ERROR, STATUS_OK, STATUS_UNSUPPORTED};
use super::scratch::Scratch;
use super::*;
use crate::machine::memory::{self, GuestMemory};

const HEADER: GuestAddress = GuestAddress(0x1000);
const DATA: GuestAddress = GuestAddress(0x2000);
const STATUS: GuestAddress = GuestAddress(0x8000);
const DISK_BYTES: u64 = 1 << 20;

struct Disk {
    memory: GuestMemory,
    block: Block,
    file: std::fs::File,
}

impl Disk {
    fn new() -> Self {
        let file = tempfile::tempfile().unwrap();
        file.set_len(DISK_BYTES).unwrap();
        let storage = Scratch::new(file.try_clone().unwrap()).unwrap();
        Self { memory: memory::allocate(64).unwrap(), block: Block::new("scratch", Box::new(storage)), file }
    }

    /// Sends a request with `readable` and `writable` bytes of data; returns its status.
    fn request(&mut self, kind: u32, sector: u64, readable: u32, writable: u32) -> u8 {
        self.memory.write_obj(kind, HEADER).unwrap();
        self.memory.write_obj(0u32, GuestAddress(HEADER.0 + 4)).unwrap();
        self.memory.write_obj(sector, GuestAddress(HEADER.0 + 8)).unwrap();
        self.memory.write_obj(0xffu8, STATUS).unwrap();
        let chain = &mut self.block.chain;
        chain.readable.clear();
        chain.writable.clear();
        assert!(chain.readable.push(&self.memory, HEADER, 16));
        if readable > 0 {
            assert!(chain.readable.push(&self.memory, DATA, readable));
        }
        if writable > 0 {
            assert!(chain.writable.push(&self.memory, DATA, writable));
        }
        assert!(chain.writable.push(&self.memory, STATUS, 1));
        let written = self.block.execute();
        assert_eq!(written, writable + 1);
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
fn a_chain_without_header_or_status_is_left_unanswered() {
    let disk = Disk::new();
    let mut data = Buffers::new();
    let mut chain = Chain::default();
    assert!(chain.readable.push(&disk.memory, HEADER, 16));
    assert_eq!(Request::parse(&chain, DISK_BYTES, &mut data), None);
    chain.readable.clear();
    assert!(chain.readable.push(&disk.memory, HEADER, 15));
    assert!(chain.writable.push(&disk.memory, STATUS, 1));
    assert_eq!(Request::parse(&chain, DISK_BYTES, &mut data), None);
}

#[test]
fn a_read_only_disk_refuses_every_change() {
    let mut disk = Disk::new();
    disk.block = Block::new("layers", Box::new(extents::Extents::new(true)));
    assert_ne!(disk.block.features() & F_READ_ONLY, 0);
    assert_eq!(disk.block.features() & (F_DISCARD | F_WRITE_ZEROES), 0);
    assert_eq!(disk.request(1, 0, 512, 0), STATUS_IO_ERROR);
    assert_eq!(disk.range(11, 0, 8, 0), STATUS_IO_ERROR);
    assert_eq!(disk.range(13, 0, 8, 0), STATUS_IO_ERROR);
}
