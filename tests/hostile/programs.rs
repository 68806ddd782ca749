//! What hostile guests do.

use super::guest::Kind::{In8, Out8, Out32, Read8, Read32, Write8, Write16, Write32};
use super::guest::{FREE, Kind, MEMORY_END, Op};

/// Where the machine's devices are: a window of registers each.
const WINDOWS: u32 = 0xd000_0000;
const WINDOW: u32 = 0x1000;
/// Memory that buffers are in.
const BUFFERS: u32 = FREE + (8 << 20);

// Registers of a device (virtio 1.3 §4.2.2).
const DRIVER_FEATURES: u32 = 0x20;
const DRIVER_FEATURES_SEL: u32 = 0x24;
const QUEUE_SEL: u32 = 0x30;
const QUEUE_NUM: u32 = 0x38;
const QUEUE_READY: u32 = 0x44;
const QUEUE_NOTIFY: u32 = 0x50;
const INTERRUPT_ACK: u32 = 0x64;
const STATUS: u32 = 0x70;
const QUEUE_DESC: u32 = 0x80;
const QUEUE_DRIVER: u32 = 0x90;
const QUEUE_DEVICE: u32 = 0xa0;

const NEXT: u32 = 1;
const WRITABLE: u32 = 2;
const ANY: u32 = u32::MAX;

/// A device of the machine.
#[derive(Debug, Clone, Copy)]
pub struct Device {
    pub name: &'static str,
    index: u32,
    queues: u32,
}

/// All of them, in the order of their windows.
pub const DEVICES: [Device; 8] = [
    Device { name: "layers", index: 0, queues: 1 },
    Device { name: "scratch", index: 1, queues: 1 },
    Device { name: "volumes", index: 2, queues: 1 },
    Device { name: "net", index: 3, queues: 2 },
    Device { name: "vsock", index: 4, queues: 3 },
    Device { name: "rng", index: 5, queues: 1 },
    Device { name: "balloon", index: 6, queues: 3 },
    Device { name: "fs", index: 7, queues: 2 },
];
const VSOCK: Device = DEVICES[4];

const fn op(kind: Kind, address: u32, value: u32) -> Op {
    Op { address, address_mask: 0, value, value_mask: 0, kind }
}

const fn drawn(kind: Kind, address: u32, address_mask: u32, value: u32, value_mask: u32) -> Op {
    Op { address, address_mask, value, value_mask, kind }
}

impl Device {
    const fn register(self, register: u32) -> u32 {
        WINDOWS + self.index * WINDOW + register
    }

    const fn set(self, register: u32, value: u32) -> Op {
        op(Write32, self.register(register), value)
    }

    /// The rings of a queue: descriptors, then available, then used, 4 KiB each.
    const fn rings(self, queue: u32) -> u32 {
        FREE + (self.index * 8 + queue) * 0x4000
    }

    fn descriptor(self, queue: u32, index: u32, address: u32, length: u32, flags: u32, next: u32) -> [Op; 4] {
        let at = self.rings(queue) + index * 16;
        [
            op(Write32, at, address),
            op(Write32, at + 4, 0),
            op(Write32, at + 8, length),
            op(Write32, at + 12, flags | next << 16),
        ]
    }

    /// Everything a driver does before its first request.
    fn set_up(self, size: u32) -> Vec<Op> {
        let mut ops = vec![self.set(STATUS, 0), self.set(STATUS, 1), self.set(STATUS, 3)];
        // VIRTIO_F_VERSION_1 and nothing else.
        ops.extend([self.set(DRIVER_FEATURES_SEL, 1), self.set(DRIVER_FEATURES, 1)]);
        ops.extend([self.set(DRIVER_FEATURES_SEL, 0), self.set(DRIVER_FEATURES, 0), self.set(STATUS, 0xb)]);
        for queue in 0..self.queues {
            let rings = self.rings(queue);
            ops.extend([self.set(QUEUE_SEL, queue), self.set(QUEUE_NUM, size)]);
            for (register, at) in [(QUEUE_DESC, 0), (QUEUE_DRIVER, 0x1000), (QUEUE_DEVICE, 0x2000)] {
                ops.extend([self.set(register, rings + at), self.set(register + 4, 0)]);
            }
            // Nothing is available.
            ops.push(op(Write32, rings + 0x1000, 0));
            ops.push(self.set(QUEUE_READY, 1));
        }
        ops.push(self.set(STATUS, 0xf));
        ops
    }
}

/// Every register of every device, in any order, with values of all kinds, in all widths; ports too.
pub fn registers() -> Vec<Op> {
    let mut ops = Vec::new();
    let every = 7 * WINDOW - 1;
    for value in
        [0, 1, 3, 0xb, 0xf, 0x80, 0x100, 0x8000, 0xffff, 0x1_0000, FREE, WINDOWS, MEMORY_END - 1, ANY]
    {
        // Bits 0 to 8 of the offset choose a register or a byte of the configuration, the higher ones a device.
        ops.push(drawn(Write32, WINDOWS, every & !0xe03, value, 0));
        ops.push(drawn(Write32, WINDOWS, every & !0xe03, value, ANY));
        ops.push(drawn(Read32, WINDOWS, every & !0xe03, 0, 0));
        ops.push(drawn(Write16, WINDOWS, every, value, ANY));
        ops.push(drawn(Write8, WINDOWS, every, value, ANY));
        ops.push(drawn(Read8, WINDOWS, every, 0, 0));
        // Between the windows and beyond.
        ops.push(drawn(Write32, WINDOWS + 8 * WINDOW, 0xf_fffc, value, ANY));
        // Ports that mean nothing, the console's, and the agent's with what is no mark.
        ops.push(drawn(In8, 0, 0xffff, 0, 0));
        ops.push(drawn(Out8, 0x3f8, 7, value, 0xff));
        ops.push(op(Out32, 0x600, 0xff00));
    }
    for device in DEVICES {
        ops.extend(device.set_up(16));
        for step in 0..16 {
            ops.push(drawn(Write32, device.register(0), 0x1fc, step, ANY));
            ops.push(device.set(QUEUE_NOTIFY, step));
        }
    }
    ops
}

/// A driver that set its device up well, with descriptors, rings and requests drawn at random.
pub fn nonsense(device: Device) -> Vec<Op> {
    let mut ops = Vec::new();
    for size in [256, 16, 1] {
        ops.extend(device.set_up(size));
        for queue in 0..device.queues {
            let rings = device.rings(queue);
            let addresses = [BUFFERS, rings, 0, MEMORY_END - 1, MEMORY_END, WINDOWS, 0xfee0_0000, ANY];
            let lengths = [0, 1, 16, 44, 512, 4096, 0x7fff_ffff, ANY];
            for index in 0..48 {
                let at = rings + index * 16;
                ops.push(drawn(
                    Write32,
                    at,
                    0,
                    addresses[(index % 8) as usize],
                    if index % 3 == 0 { 0xffff } else { 0 },
                ));
                ops.push(drawn(Write32, at + 4, 0, u32::from(index % 11 == 10), 0));
                ops.push(drawn(
                    Write32,
                    at + 8,
                    0,
                    lengths[(index / 3 % 8) as usize],
                    if index % 5 == 0 { 0xfff } else { 0 },
                ));
                // Flags with bits that nobody has defined; chains that loop and lead out of the table.
                ops.push(drawn(Write32, at + 12, 0, 0, if index % 7 == 0 { ANY } else { 0x3f_0007 }));
                ops.push(drawn(
                    Write16,
                    rings + 0x1004 + index * 2,
                    0,
                    0,
                    if index % 9 == 0 { 0xffff } else { 0x3f },
                ));
            }
            // Requests of all types at all places.
            for word in 0..32 {
                ops.push(drawn(Write32, BUFFERS + word * 4, 0, 0, if word % 4 == 0 { 0xf } else { 0xffff }));
            }
            // The index runs: forward, far ahead, backward.
            for mask in [3, 0xf, 0xff, 0xffff, 1] {
                ops.push(drawn(Write16, rings + 0x1002, 0, 0, mask));
                ops.push(device.set(QUEUE_NOTIFY, queue));
                ops.push(op(Read32, device.register(STATUS), 0));
                ops.push(device.set(INTERRUPT_ACK, 3));
            }
        }
        // A ready queue is set up anew under the device's hands.
        ops.push(drawn(Write32, device.register(QUEUE_DESC), 0x3c, FREE, ANY));
        ops.push(device.set(QUEUE_NOTIFY, 0));
    }
    ops
}

/// Requests that are in order, given up by a reset as soon as they are made.
pub fn resets(device: Device) -> Vec<Op> {
    let mut ops = Vec::new();
    for kind in [0, 1, 4, 8, 11, 13] {
        ops.extend(device.set_up(16));
        // A request of a disk; to other devices it is a packet or a list of pages.
        ops.extend([
            op(Write32, BUFFERS, kind),
            op(Write32, BUFFERS + 4, 0),
            drawn(Write32, BUFFERS + 8, 0, 0, 0xfff),
        ]);
        ops.push(op(Write32, BUFFERS + 12, 0));
        for queue in 0..device.queues {
            let data = if matches!(kind, 1 | 11 | 13) { NEXT } else { NEXT | WRITABLE };
            ops.extend(device.descriptor(queue, 0, BUFFERS, 16, NEXT, 1));
            ops.extend(device.descriptor(queue, 1, BUFFERS + 0x1_0000, 0x8_0000, data, 2));
            ops.extend(device.descriptor(queue, 2, BUFFERS + 0x1000, 1, WRITABLE, 0));
            let available = device.rings(queue) + 0x1000;
            ops.extend([op(Write32, available + 4, 0), op(Write16, available + 2, 4)]);
            ops.push(device.set(QUEUE_NOTIFY, queue));
        }
        ops.push(device.set(STATUS, 0));
        ops.push(device.set(QUEUE_NOTIFY, 0));
    }
    ops
}

/// Notifications of all queues, those that do not exist as well, of devices that have nothing to do.
pub fn notifications() -> Vec<Op> {
    let mut ops: Vec<_> = DEVICES.iter().flat_map(|device| device.set_up(16)).collect();
    for _ in 0..2000 {
        ops.push(drawn(Write32, WINDOWS + QUEUE_NOTIFY, (7 * WINDOW) & !0xfff, 0, 3));
    }
    ops.push(drawn(Write32, WINDOWS + QUEUE_NOTIFY, 0x7000, 0, ANY));
    ops
}

/// The agent's mark, again and again.
pub fn marks() -> Vec<Op> {
    vec![op(Out8, 0x600, 1); 64]
}

/// Receive buffers with room for a packet's header alone, while the machine has something to say.
pub fn headers_only() -> Vec<Op> {
    const HEADER: u32 = 44;
    let mut ops = VSOCK.set_up(128);
    for index in 0..128 {
        ops.extend(VSOCK.descriptor(0, index, BUFFERS + 0x1_0000 + index * 64, HEADER, WRITABLE, 0));
        ops.push(op(Write16, VSOCK.rings(0) + 0x1004 + index * 2, index));
    }
    // Connection requests, which the machine refuses: from CID 3 to the host's, 2.
    let packet = [3, 0, 2, 0, 1000, 1024, 0, 1 | 1 << 16, 0, 0x1_0000, 0];
    for (index, word) in (0..).zip(packet) {
        ops.push(op(Write32, BUFFERS + index * 4, word));
    }
    for index in 0..128 {
        ops.extend(VSOCK.descriptor(1, index, BUFFERS, HEADER, 0, 0));
        ops.push(op(Write16, VSOCK.rings(1) + 0x1004 + index * 2, index));
    }
    ops.extend([op(Write16, VSOCK.rings(0) + 0x1002, 128), VSOCK.set(QUEUE_NOTIFY, 0)]);
    ops.extend([op(Write16, VSOCK.rings(1) + 0x1002, 128), VSOCK.set(QUEUE_NOTIFY, 1)]);
    for _ in 0..64 {
        ops.extend([VSOCK.set(QUEUE_NOTIFY, 0), VSOCK.set(QUEUE_NOTIFY, 1), VSOCK.set(INTERRUPT_ACK, 3)]);
    }
    ops
}
