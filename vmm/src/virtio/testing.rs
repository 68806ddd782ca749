//! The driver's side of a queue, for tests.

use std::sync::Arc;

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::interrupt::Interrupt;
use super::queue::{Budget, Chain, Malformed, QueueSpec, Verdict, Virtqueue};
use crate::event::EventFd;
use crate::machine::memory::{self, GuestMemory};

pub const SIZE: u16 = 16;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

/// A queue in guest memory, filled by hand.
pub struct Driver {
    pub memory: GuestMemory,
    pub interrupt: Arc<Interrupt>,
    pub notification: Arc<EventFd>,
    base: u64,
    next_descriptor: u16,
    available: u16,
    used: u16,
}

impl Driver {
    pub fn new() -> Self {
        Self::at(&memory::allocate(64).unwrap(), 0x10_0000)
    }

    pub fn at(memory: &GuestMemory, base: u64) -> Self {
        Self {
            memory: memory.clone(),
            interrupt: Arc::new(Interrupt::new().unwrap()),
            notification: Arc::new(EventFd::new().unwrap()),
            base,
            next_descriptor: 0,
            available: 0,
            used: 0,
        }
    }

    pub fn table(&self) -> u64 {
        self.base
    }

    pub fn available_ring(&self) -> u64 {
        self.base + 0x1000
    }

    pub fn used_ring(&self) -> u64 {
        self.base + 0x2000
    }

    pub fn queue(&self) -> Virtqueue {
        self.queue_as(QueueSpec {
            size: SIZE,
            max_chain_bytes: 1 << 20,
            signal_every: 64,
            malformed: Malformed::GiveBack,
        })
    }

    pub fn queue_as(&self, spec: QueueSpec) -> Virtqueue {
        let mut queue = Queue::new(SIZE).unwrap();
        queue.try_set_desc_table_address(GuestAddress(self.table())).unwrap();
        queue.try_set_avail_ring_address(GuestAddress(self.available_ring())).unwrap();
        queue.try_set_used_ring_address(GuestAddress(self.used_ring())).unwrap();
        queue.set_event_idx(true);
        queue.set_ready(true);
        assert!(queue.is_valid(&self.memory));
        let (interrupt, notification) = (Arc::clone(&self.interrupt), Arc::clone(&self.notification));
        Virtqueue::new(queue, spec, self.memory.clone(), interrupt, notification)
    }

    /// Whether the queue was notified since the last call, by whomever.
    pub fn was_notified(&self) -> bool {
        rustix::io::read(&*self.notification, &mut [0; 8]).is_ok()
    }

    pub fn put(&self, address: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(address)).unwrap();
    }

    pub fn get(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }

    pub fn descriptor(&self, table: u64, index: u16, address: u64, length: u32, flags: u16, next: u16) {
        let at = table + u64::from(index) * 16;
        self.put(at, &address.to_le_bytes());
        self.put(at + 8, &length.to_le_bytes());
        self.put(at + 12, &flags.to_le_bytes());
        self.put(at + 14, &next.to_le_bytes());
    }

    /// Makes the chain at `head` available.
    pub fn offer(&mut self, head: u16) {
        let slot = u64::from(self.available % SIZE);
        self.put(self.available_ring() + 4 + slot * 2, &head.to_le_bytes());
        self.available = self.available.wrapping_add(1);
        self.set_available_index(self.available);
    }

    pub fn set_available_index(&self, index: u16) {
        self.put(self.available_ring() + 2, &index.to_le_bytes());
    }

    /// Adds a chain of readable then writable (address, length) pieces; returns its head.
    pub fn add(&mut self, readable: &[(u64, u32)], writable: &[(u64, u32)]) -> u16 {
        let head = self.next_descriptor;
        let count = readable.len() + writable.len();
        let pieces =
            readable.iter().map(|piece| (piece, 0)).chain(writable.iter().map(|piece| (piece, WRITE)));
        for (position, ((address, length), flags)) in pieces.enumerate() {
            let index = self.next_descriptor;
            self.next_descriptor = (index + 1) % SIZE;
            let more = if position + 1 < count { NEXT } else { 0 };
            self.descriptor(self.table(), index, *address, *length, flags | more, self.next_descriptor);
        }
        self.offer(head);
        head
    }

    /// What the device gave back since the last call: heads and written bytes.
    pub fn used(&mut self) -> Vec<(u32, u32)> {
        let index: u16 = self.memory.read_obj(GuestAddress(self.used_ring() + 2)).unwrap();
        let mut all = Vec::new();
        while self.used != index {
            let at = self.used_ring() + 4 + u64::from(self.used % SIZE) * 8;
            let element = (
                self.memory.read_obj(GuestAddress(at)).unwrap(),
                self.memory.read_obj(GuestAddress(at + 4)).unwrap(),
            );
            all.push(element);
            self.used = self.used.wrapping_add(1);
        }
        all
    }
}

/// Takes the next well-formed chain of a queue for good.
pub fn take(queue: &mut Virtqueue) -> Option<Chain> {
    let mut taken = None;
    queue.serve(&mut Budget::new(SIZE), |chain| {
        taken = Some(std::mem::take(chain));
        Verdict::LastKept
    });
    taken
}
