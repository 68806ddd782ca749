//! A device with a driver that is played from a fuzzer's bytes, all in one thread so that the same bytes do the same.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, LazyLock, Mutex};

use ravelin_fuzz::Input;
use ravelin_vmm::event::{Event, Poller};
use ravelin_vmm::machine::memory::{self, GuestMemory};
use ravelin_vmm::virtio::block::{Patience, Storage};
use ravelin_vmm::virtio::buffers::Buffers;
use ravelin_vmm::virtio::mmio::MmioDevice;
use ravelin_vmm::virtio::owner::{Order, Owner, Reset};
use ravelin_vmm::virtio::{Device, QUEUE_TOKENS};
use vm_memory::{Bytes, GuestAddress};

/// MiB of the guest's memory.
pub const MEMORY_MIB: u32 = 64;
/// The part of the guest's memory that programs write to and point into.
pub const ARENA: u64 = 0x10_0000;
/// Its length: room for the rings of [`MOST_QUEUES`], and for data behind them.
pub const ARENA_BYTES: u64 = 0x4_0000;
/// Where data begins in it.
pub const DATA: u64 = ARENA + MOST_QUEUES as u64 * RINGS;
/// Bytes for the rings of one queue.
const RINGS: u64 = 0x1000;
/// Queues that programs use.
const MOST_QUEUES: usize = 9;
/// Descriptors of each.
pub const SIZE: u16 = 16;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

const QUEUE_NOTIFY: u64 = 0x50;
const STATUS: u64 = 0x70;

/// The registers of a device that do something.
pub const REGISTERS: [u64; 25] = [
    0x00, 0x04, 0x08, 0x0c, 0x10, 0x14, 0x20, 0x24, 0x30, 0x34, 0x38, 0x44, 0x50, 0x60, 0x64, 0x70, 0x80,
    0x84, 0x90, 0x94, 0xa0, 0xa4, 0xb0, 0xfc, 0x100,
];

/// The guest's memory. There is one for all inputs, because memory is never unmapped.
static MEMORY: LazyLock<GuestMemory> = LazyLock::new(|| memory::allocate(MEMORY_MIB).unwrap());

/// The guest's memory, with zeros where programs write.
pub fn fresh_memory() -> GuestMemory {
    memory::discard(&MEMORY, GuestAddress(ARENA), ARENA_BYTES).unwrap();
    MEMORY.clone()
}

/// An address: mostly one in the arena's data, sometimes one at memory's end or anywhere.
pub fn address(input: &mut Input<'_>) -> u64 {
    match input.u8() {
        0 => input.u64(),
        1 => (u64::from(MEMORY_MIB) << 20).wrapping_sub(u64::from(input.u16())),
        2 => ARENA + u64::from(input.u16()),
        _ => DATA + u64::from(input.u16()),
    }
}

/// A length: mostly a small one.
pub fn length(input: &mut Input<'_>) -> u32 {
    match input.u8() {
        255 => input.u32(),
        254 => u32::from(input.u16()) << 8,
        253 => u32::from(input.u16()),
        short => u32::from(short),
    }
}

/// A file in memory of so many bytes, each of them `fill`.
pub fn memory_file(bytes: u64, fill: u8) -> File {
    let file = File::from(rustix::fs::memfd_create("fuzz", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
    file.set_len(bytes).unwrap();
    if fill != 0 {
        let contents = vec![fill; usize::try_from(bytes).unwrap()];
        std::os::unix::fs::FileExt::write_all_at(&file, &contents, 0).unwrap();
    }
    file
}

/// What a file holds.
pub fn contents(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
    std::os::unix::fs::FileExt::read_exact_at(file, &mut bytes, 0).unwrap();
    bytes
}

/// A disk whose requests mostly need no waiting, as on a file system that can tell; every eighth goes to a thread.
pub struct Prompt<S>(S, AtomicU32);

impl<S> Prompt<S> {
    /// The same disk, but prompt.
    pub fn new(storage: S) -> Self {
        Self(storage, AtomicU32::new(0))
    }

    fn patience(&self, asked: Patience) -> io::Result<Patience> {
        if asked == Patience::None && self.1.fetch_add(1, Ordering::Relaxed) % 8 == 7 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(Patience::Any)
    }
}

impl<S: Storage> Storage for Prompt<S> {
    fn capacity(&self) -> u64 {
        self.0.capacity()
    }

    fn is_read_only(&self) -> bool {
        self.0.is_read_only()
    }

    fn read(&self, buffers: &Buffers, offset: u64, patience: Patience) -> io::Result<()> {
        self.0.read(buffers, offset, self.patience(patience)?)
    }

    fn write(&self, buffers: &Buffers, offset: u64, patience: Patience) -> io::Result<()> {
        self.0.write(buffers, offset, self.patience(patience)?)
    }

    fn flush(&self, patience: Patience) -> io::Result<()> {
        self.0.flush(self.patience(patience)?)
    }

    fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        self.0.discard(offset, length)
    }

    fn write_zeroes(&self, offset: u64, length: u64, unmap: bool) -> io::Result<()> {
        self.0.write_zeroes(offset, length, unmap)
    }
}

/// Puts bytes into memory; where there is none, nothing happens.
pub fn put(memory: &GuestMemory, address: u64, bytes: &[u8]) {
    let _ = memory.write_slice(bytes, GuestAddress(address));
}

/// What the driver has done to one queue's rings.
#[derive(Debug, Clone, Copy, Default)]
pub struct Rings {
    table: u64,
    next_descriptor: u16,
    available: u16,
}

impl Rings {
    /// The rings of a queue at their usual place.
    pub fn of(queue: usize) -> Self {
        Self { table: ARENA + queue as u64 * RINGS, ..Self::default() }
    }

    /// Where the descriptors are.
    pub fn table(&self) -> u64 {
        self.table
    }

    /// Where the driver's ring is.
    pub fn available_ring(&self) -> u64 {
        self.table + 0x400
    }

    /// Where the device's ring is.
    pub fn used_ring(&self) -> u64 {
        self.table + 0x800
    }

    /// Adds a chain of (address, length, flags); `flags` can make it a malformed one.
    pub fn add(&mut self, memory: &GuestMemory, pieces: &[(u64, u32, u16)]) {
        let head = self.next_descriptor;
        for (position, (address, length, flags)) in pieces.iter().enumerate() {
            let index = self.next_descriptor;
            self.next_descriptor = (index + 1) % SIZE;
            let more = if position + 1 < pieces.len() { NEXT } else { 0 };
            let mut descriptor = [0; 16];
            descriptor[..8].copy_from_slice(&address.to_le_bytes());
            descriptor[8..12].copy_from_slice(&length.to_le_bytes());
            descriptor[12..14].copy_from_slice(&(flags ^ more).to_le_bytes());
            descriptor[14..].copy_from_slice(&self.next_descriptor.to_le_bytes());
            put(memory, self.table + u64::from(index) * 16, &descriptor);
        }
        self.offer(memory, head);
    }

    /// Adds a chain of readable, then writable pieces.
    pub fn add_plain(&mut self, memory: &GuestMemory, readable: &[(u64, u32)], writable: &[(u64, u32)]) {
        let readable = readable.iter().map(|(address, length)| (*address, *length, 0));
        let writable = writable.iter().map(|(address, length)| (*address, *length, WRITE));
        self.add(memory, &readable.chain(writable).collect::<Vec<_>>());
    }

    /// Makes the chain at `head` available.
    pub fn offer(&mut self, memory: &GuestMemory, head: u16) {
        let slot = u64::from(self.available % SIZE);
        put(memory, self.available_ring() + 4 + slot * 2, &head.to_le_bytes());
        self.available = self.available.wrapping_add(1);
        put(memory, self.available_ring() + 2, &self.available.to_le_bytes());
    }

    /// A chain or a malformed one, or something else in the rings.
    pub fn play(&mut self, memory: &GuestMemory, input: &mut Input<'_>) {
        match input.u8() {
            0 => {
                let head = input.u16();
                self.offer(memory, head);
            }
            1 => {
                self.available = input.u16();
                put(memory, self.available_ring() + 2, &self.available.to_le_bytes());
            }
            // Flags of the driver's ring, used event, or any entry.
            2 => {
                let at = u64::from(input.u8());
                put(memory, self.available_ring() + at, &input.u16().to_le_bytes());
            }
            3 => {
                let at = u64::from(input.u8());
                let bytes = input.bytes(16);
                put(memory, self.table + at, bytes);
            }
            count => {
                let pieces: Vec<_> = (0..count % 8)
                    .map(|_| {
                        let flags = match input.u8() {
                            0 => input.u16(),
                            1 => INDIRECT,
                            kind if kind % 2 == 0 => 0,
                            _ => WRITE,
                        };
                        (address(input), length(input), flags)
                    })
                    .collect();
                self.add(memory, &pieces);
            }
        }
    }
}

/// A device, its registers and the part of its thread.
pub struct Bench {
    /// The guest's memory.
    pub memory: GuestMemory,
    /// The device's registers.
    pub window: MmioDevice,
    /// What the driver did to the queues.
    pub rings: Vec<Rings>,
    device: Box<dyn Device>,
    poller: Poller,
    orders: Arc<Mutex<VecDeque<Order>>>,
    active: bool,
    reset: Option<Arc<Reset>>,
}

impl Bench {
    /// A device that nobody has touched.
    pub fn new(mut device: Box<dyn Device>) -> Self {
        let memory = fresh_memory();
        let orders = Arc::new(Mutex::new(VecDeque::new()));
        let inbox = Arc::clone(&orders);
        let owner = Owner {
            order: Box::new(move |order| inbox.lock().unwrap().push_back(order)),
            completed: Arc::new(|| {}),
        };
        let window = MmioDevice::new(device.describe(), memory.clone(), owner).unwrap();
        let poller = Poller::new().unwrap();
        let registrar = poller.registrar(0);
        for (queue, notification) in (0u32..).zip(window.notifications().iter()) {
            registrar.add_readable(&**notification, QUEUE_TOKENS + queue).unwrap();
        }
        device.attach(registrar).unwrap();
        let rings = (0..window.notifications().len().min(MOST_QUEUES)).map(Rings::of).collect();
        Self { memory, window, rings, device, poller, orders, active: false, reset: None }
    }

    /// A register of 32 bits.
    pub fn get(&self, register: u64) -> u32 {
        let mut data = [0; 4];
        self.window.read(register, &mut data);
        u32::from_le_bytes(data)
    }

    /// Writes a register of 32 bits. Queues are notified as KVM does it.
    pub fn set(&self, register: u64, value: u32) {
        if register == QUEUE_NOTIFY
            && let Some(notification) = self.window.notifications().get(value as usize)
        {
            notification.signal();
            return;
        }
        // The reset is looked for where the device's thread is played.
        let _ = self.window.write(register, &value.to_le_bytes());
    }

    /// What a driver does until its device is active, with the features that the device offers but for `without`.
    pub fn start(&mut self, without: u64) {
        self.set(STATUS, 0);
        self.turn();
        for status in [1, 3] {
            self.set(STATUS, status);
        }
        for half in 0..2 {
            self.set(0x14, half);
            self.set(0x24, half);
            let without = (without >> (half * 32)) as u32;
            // Without VIRTIO_F_VERSION_1 nothing goes on.
            let kept = if half == 1 { 1 } else { 0 };
            self.set(0x20, self.get(0x10) & (!without | kept));
        }
        self.set(STATUS, 11);
        for queue in 0..self.rings.len() {
            self.rings[queue] = Rings::of(queue);
            let rings = self.rings[queue];
            self.set(0x30, queue as u32);
            self.set(0x38, u32::from(SIZE));
            self.set(0x80, rings.table() as u32);
            self.set(0x90, rings.available_ring() as u32);
            self.set(0xa0, rings.used_ring() as u32);
            self.set(0x44, 1);
            put(&self.memory, rings.table(), &[0; RINGS as usize]);
        }
        self.set(STATUS, 15);
        self.turn();
    }

    /// Plays a program: what guests can do to registers, rings and memory, and `other` for what is special.
    pub fn play(&mut self, input: &mut Input<'_>, mut other: impl FnMut(&mut Self, &mut Input<'_>)) {
        while !input.is_empty() {
            match input.u8() % 16 {
                0 => {
                    let (register, value) = (any_register(input), any_value(input));
                    self.set(register, value);
                }
                1 => {
                    let register = any_register(input);
                    let mut data = [0; 16];
                    let size = input.below(17);
                    self.window.read(register, &mut data[..size]);
                }
                2 => {
                    let register = any_register(input);
                    let size = input.below(9);
                    let _ = self.window.write(register, input.bytes(size));
                }
                3 => {
                    let at = address(input);
                    let length = usize::from(input.u8());
                    put(&self.memory, at, input.bytes(length));
                }
                4 => {
                    let without = u64::from(input.u32());
                    self.start(without);
                }
                5..=7 if !self.rings.is_empty() => {
                    let queue = input.below(self.rings.len());
                    let memory = self.memory.clone();
                    self.rings[queue].play(&memory, input);
                }
                8 => {
                    let queue = u32::from(input.u8());
                    self.set(QUEUE_NOTIFY, queue);
                }
                9 => self.turn(),
                _ => other(self, input),
            }
        }
        self.turn();
    }

    /// Does what the device's thread would do until nothing is left to do, for a while at most.
    pub fn turn(&mut self) {
        for _ in 0..64 {
            let orders: Vec<_> = self.orders.lock().unwrap().drain(..).collect();
            for order in orders {
                self.obey(order);
            }
            let events = self.poller.wait(Some(0)).unwrap();
            if events.is_empty() {
                return;
            }
            for event in events {
                self.handle(event);
            }
        }
    }

    /// Resets the device and sees that it lets go of everything.
    pub fn finish(mut self) -> Box<dyn Device> {
        self.set(STATUS, 0);
        self.turn();
        let mut patience = 100;
        while self.get(STATUS) != 0 {
            patience -= 1;
            assert!(patience > 0, "a reset does not end: {} requests are in flight", self.device.in_flight());
            let events = self.poller.wait(Some(200)).unwrap();
            for event in events {
                self.handle(event);
            }
            self.turn();
        }
        assert_eq!(self.device.in_flight(), 0);
        self.device
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Activate { features, queues } => {
                self.device.activate(features, queues);
                self.active = true;
                self.window.notifications().iter().for_each(|notification| notification.signal());
            }
            Order::Reset(reset) => {
                self.device.reset();
                self.active = false;
                self.reset = Some(reset);
                self.finish_reset();
            }
        }
    }

    fn handle(&mut self, event: Event) {
        if event.token < QUEUE_TOKENS {
            self.device.event(event.token, event.readiness);
            self.finish_reset();
            return;
        }
        let queue = (event.token - QUEUE_TOKENS) as usize;
        self.window.notifications()[queue].clear();
        if self.active && !self.window.interrupt().is_reset_needed() {
            self.device.serve(queue);
        }
    }

    fn finish_reset(&mut self) {
        if self.device.in_flight() == 0
            && let Some(reset) = self.reset.take()
        {
            self.window.interrupt().reset();
            reset.complete();
        }
    }
}

/// A register's place: mostly of one that does something.
pub fn any_register(input: &mut Input<'_>) -> u64 {
    match input.u8() {
        255 => input.u64(),
        254 => u64::from(input.u16()),
        known => REGISTERS[usize::from(known) % REGISTERS.len()],
    }
}

/// A register's value: mostly one that drivers write.
pub fn any_value(input: &mut Input<'_>) -> u32 {
    match input.u8() {
        255 => input.u32(),
        254 => ARENA as u32 + u32::from(input.u16()),
        small => u32::from(small),
    }
}
