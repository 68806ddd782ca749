//! The virtio-mmio transport (virtio 1.3 §4.2), version 2, as a strict state machine.
//!
//! Whatever a driver does outside the order that the specification lays down is ignored and counted, so that a
//! device only ever sees negotiated features and queues that were checked and cannot change any more.
//!
//! The registers belong to the processors, which reach them under a lock that is only held to look at them or change
//! them; the device and its queues belong to a thread that is told of a start or a reset by an [`Order`]. Only a reset
//! has to be waited for: afterwards the driver takes its memory back.

use std::sync::Arc;

use virtio_queue::{Queue, QueueT};

use super::interrupt::Interrupt;
use super::owner::{Order, Owner, Reset};
use super::queue::Virtqueue;
use super::{Description, F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1};
use crate::event::EventFd;
use crate::machine::memory::GuestMemory;

const MAGIC_VALUE: u64 = 0x00;
const VERSION: u64 = 0x04;
const DEVICE_ID: u64 = 0x08;
const VENDOR_ID: u64 = 0x0c;
const DEVICE_FEATURES: u64 = 0x10;
const DEVICE_FEATURES_SEL: u64 = 0x14;
const DRIVER_FEATURES: u64 = 0x20;
const DRIVER_FEATURES_SEL: u64 = 0x24;
const QUEUE_SEL: u64 = 0x30;
const QUEUE_NUM_MAX: u64 = 0x34;
const QUEUE_NUM: u64 = 0x38;
const QUEUE_READY: u64 = 0x44;
/// Where drivers notify the device of new buffers.
pub const QUEUE_NOTIFY: u64 = 0x50;
/// Why the device interrupted.
pub const INTERRUPT_STATUS: u64 = 0x60;
/// What of it the driver has seen.
pub const INTERRUPT_ACK: u64 = 0x64;
const STATUS: u64 = 0x70;
const QUEUE_DESC_LOW: u64 = 0x80;
const QUEUE_DESC_HIGH: u64 = 0x84;
const QUEUE_DRIVER_LOW: u64 = 0x90;
const QUEUE_DRIVER_HIGH: u64 = 0x94;
const QUEUE_DEVICE_LOW: u64 = 0xa0;
const QUEUE_DEVICE_HIGH: u64 = 0xa4;
const SHM_FIRST: u64 = 0xb0;
const SHM_LAST: u64 = 0xbc;
const CONFIG_GENERATION: u64 = 0xfc;
const CONFIG: u64 = 0x100;

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VENDOR: u32 = u32::from_le_bytes(*b"RVLN");

const ACKNOWLEDGE: u32 = 1;
const DRIVER: u32 = 2;
const DRIVER_OK: u32 = 4;
const FEATURES_OK: u32 = 8;
const NEEDS_RESET: u32 = 64;
const FAILED: u32 = 128;

/// Registers of one device.
pub struct Transport {
    device: Description,
    memory: GuestMemory,
    interrupt: Arc<Interrupt>,
    notifications: Arc<[Arc<EventFd>]>,
    owner: Owner,
    status: u32,
    device_features_sel: u32,
    driver_features_sel: u32,
    driver_features: u64,
    queue_sel: u32,
    queues: Vec<Queue>,
    resetting: Option<Arc<Reset>>,
    /// Counts what the host changed in the configuration space, so that drivers know that they read it in one state.
    config_generation: u32,
}

impl std::fmt::Debug for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transport").field("status", &self.status).finish_non_exhaustive()
    }
}

impl Transport {
    /// A transport in its initial state, for a device whose queues are notified through `notifications`.
    #[must_use]
    pub fn new(
        device: Description,
        memory: GuestMemory,
        interrupt: Arc<Interrupt>,
        notifications: Arc<[Arc<EventFd>]>,
        owner: Owner,
    ) -> Self {
        let mut transport = Self {
            device,
            memory,
            interrupt,
            notifications,
            owner,
            status: 0,
            device_features_sel: 0,
            driver_features_sel: 0,
            driver_features: 0,
            queue_sel: 0,
            queues: Vec::new(),
            resetting: None,
            config_generation: 0,
        };
        transport.queues = transport.fresh_queues();
        transport
    }

    /// A number of 32 bits in the configuration space; 0 beyond its end.
    #[must_use]
    pub fn config(&self, offset: usize) -> u32 {
        let bytes = self.device.config.get(offset..).and_then(<[u8]>::first_chunk);
        bytes.map_or(0, |bytes| u32::from_le_bytes(*bytes))
    }

    /// Changes a number of 32 bits in the configuration space (virtio 1.3 §2.5) and tells the driver, if there is one.
    pub fn set_config(&mut self, offset: usize, value: u32) {
        let Some(bytes) = self.device.config.get_mut(offset..).and_then(<[u8]>::first_chunk_mut) else {
            return;
        };
        *bytes = value.to_le_bytes();
        self.config_generation = self.config_generation.wrapping_add(1);
        if self.status & DRIVER_OK != 0 {
            self.interrupt.config_changed();
        }
    }

    /// A read from the window. Registers are 32 bits wide; other widths read as zeros.
    pub fn read(&mut self, offset: u64, data: &mut [u8]) {
        self.finish_reset();
        data.fill(0);
        if let Some(start) = offset.checked_sub(CONFIG) {
            for (target, source) in data.iter_mut().zip(self.device.config.iter().skip(start as usize)) {
                *target = *source;
            }
        } else if data.len() == 4 && offset.is_multiple_of(4) {
            data.copy_from_slice(&self.register(offset).to_le_bytes());
        } else {
            self.interrupt.count_guest_error();
        }
    }

    fn register(&self, offset: u64) -> u32 {
        match offset {
            MAGIC_VALUE => MAGIC,
            VERSION => 2,
            DEVICE_ID => self.device.id,
            VENDOR_ID => VENDOR,
            DEVICE_FEATURES => match self.device_features_sel {
                0 => low(self.offered()),
                1 => high(self.offered()),
                _ => 0,
            },
            QUEUE_NUM_MAX => self.selected().map_or(0, |queue| u32::from(queue.max_size())),
            QUEUE_READY => self.selected().map_or(0, |queue| u32::from(queue.ready())),
            INTERRUPT_STATUS => self.interrupt.status(),
            STATUS => self.status | if self.interrupt.is_reset_needed() { NEEDS_RESET } else { 0 },
            // There is no shared memory: its length and base are all ones.
            SHM_FIRST..=SHM_LAST => u32::MAX,
            CONFIG_GENERATION => self.config_generation,
            _ => 0,
        }
    }

    /// A write to the window. The processor may not go on before the reset that is returned, if any, is done.
    #[must_use]
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Option<Arc<Reset>> {
        self.finish_reset();
        if let Some(start) = offset.checked_sub(CONFIG) {
            self.write_config(start, data);
            return None;
        }
        let Ok(value) = data.try_into().map(u32::from_le_bytes) else {
            self.interrupt.count_guest_error();
            return None;
        };
        if let Some(reset) = &self.resetting {
            // A device that is being reset takes nothing else.
            if (offset, value) == (STATUS, 0) {
                return Some(Arc::clone(reset));
            }
            self.interrupt.count_guest_error();
            return None;
        }
        match offset {
            DEVICE_FEATURES_SEL => self.device_features_sel = value,
            DRIVER_FEATURES_SEL => self.driver_features_sel = value,
            DRIVER_FEATURES => self.accept_features(value),
            QUEUE_SEL => self.queue_sel = value,
            QUEUE_NUM | QUEUE_READY | QUEUE_DESC_LOW..=QUEUE_DEVICE_HIGH => self.set_up_queue(offset, value),
            INTERRUPT_ACK => self.interrupt.acknowledge(value),
            STATUS if value == 0 => return self.reset(),
            STATUS => self.add_status(value),
            // A queue that exists is notified through a descriptor and never gets here.
            _ => self.interrupt.count_guest_error(),
        }
        None
    }

    /// The driver may write one field; what it says there is believed by nobody.
    fn write_config(&mut self, start: u64, data: &[u8]) {
        let field = &self.device.writable_config;
        if usize::try_from(start) == Ok(field.start)
            && data.len() == field.len()
            && let Some(target) = self.device.config.get_mut(field.clone())
        {
            target.copy_from_slice(data);
        }
    }

    fn accept_features(&mut self, value: u32) {
        if self.status & (DRIVER | FEATURES_OK) != DRIVER {
            self.interrupt.count_guest_error();
            return;
        }
        let value = u64::from(value);
        match self.driver_features_sel {
            0 => self.driver_features = (self.driver_features & !0xffff_ffff) | value,
            1 => self.driver_features = (self.driver_features & 0xffff_ffff) | (value << 32),
            _ if value == 0 => {}
            _ => self.interrupt.count_guest_error(),
        }
    }

    fn set_up_queue(&mut self, offset: u64, value: u32) {
        // Queues are open to change between the agreement on features and the start of the device, and each only
        // until it is ready.
        let open = self.status & (FEATURES_OK | DRIVER_OK | FAILED) == FEATURES_OK;
        let stops = offset == QUEUE_READY && value == 0;
        let changed = match self.queues.get_mut(self.queue_sel as usize) {
            Some(queue) if open && (!queue.ready() || stops) => {
                change_queue(queue, &self.memory, offset, value)
            }
            // Drivers take queues down after a reset, when there is nothing left to do.
            Some(queue) if stops => !queue.ready(),
            _ => false,
        };
        if !changed {
            self.interrupt.count_guest_error();
        }
    }

    fn add_status(&mut self, value: u32) {
        let value = value & !NEEDS_RESET;
        let added = value & !self.status;
        if self.status & !value != 0 {
            self.interrupt.count_guest_error();
            return;
        }
        let in_order = match added {
            0 => true,
            ACKNOWLEDGE => true,
            DRIVER => self.status & ACKNOWLEDGE != 0,
            FEATURES_OK => self.status & (DRIVER | FAILED) == DRIVER && self.features_are_acceptable(),
            DRIVER_OK => self.status & (FEATURES_OK | FAILED) == FEATURES_OK,
            added => added == FAILED || added == ACKNOWLEDGE | DRIVER,
        };
        if !in_order {
            self.interrupt.count_guest_error();
            return;
        }
        self.status |= added;
        if added == DRIVER_OK {
            self.activate();
        }
    }

    fn features_are_acceptable(&self) -> bool {
        self.driver_features & !self.offered() == 0 && self.driver_features & F_VERSION_1 != 0
    }

    fn activate(&mut self) {
        let event_idx = self.driver_features & F_EVENT_IDX != 0;
        let fresh = self.fresh_queues();
        let queues = std::mem::replace(&mut self.queues, fresh);
        let mut handed = Vec::with_capacity(queues.len());
        let shown = self.queues.iter_mut().zip(&self.device.queues).zip(self.notifications.iter());
        for (mut queue, ((shown, spec), notification)) in queues.into_iter().zip(shown) {
            // The registers keep showing what the driver set.
            shown.set_ready(queue.ready());
            queue.set_event_idx(event_idx);
            handed.push(queue.ready().then(|| {
                let (interrupt, notification) = (Arc::clone(&self.interrupt), Arc::clone(notification));
                Virtqueue::new(queue, *spec, self.memory.clone(), interrupt, notification)
            }));
        }
        (self.owner.order)(Order::Activate { features: self.driver_features, queues: handed });
    }

    fn reset(&mut self) -> Option<Arc<Reset>> {
        if self.status & DRIVER_OK == 0 {
            // The device's thread has nothing of the driver's.
            self.interrupt.reset();
            self.clear();
            return None;
        }
        let reset = Arc::new(Reset::new(&self.owner));
        self.resetting = Some(Arc::clone(&reset));
        (self.owner.order)(Order::Reset(Arc::clone(&reset)));
        Some(reset)
    }

    /// Shows the state after a reset once it is done; until then the status is what it was (virtio 1.3 §2.1).
    fn finish_reset(&mut self) {
        if self.resetting.take_if(|reset| reset.is_done()).is_some() {
            self.clear();
        }
    }

    fn clear(&mut self) {
        self.status = 0;
        self.device_features_sel = 0;
        self.driver_features_sel = 0;
        self.driver_features = 0;
        self.queue_sel = 0;
        self.queues = self.fresh_queues();
        if let Some(field) = self.device.config.get_mut(self.device.writable_config.clone()) {
            field.fill(0);
        }
    }

    fn offered(&self) -> u64 {
        self.device.features | F_VERSION_1 | F_EVENT_IDX | F_INDIRECT_DESC
    }

    fn selected(&self) -> Option<&Queue> {
        self.queues.get(self.queue_sel as usize)
    }

    /// Queues as they are after a reset. A device whose sizes are not powers of two gets none.
    fn fresh_queues(&self) -> Vec<Queue> {
        self.device.queues.iter().filter_map(|spec| Queue::new(spec.size).ok()).collect()
    }
}

/// Changes one register of a queue that is open to change; false if the value is not acceptable.
fn change_queue(queue: &mut Queue, memory: &GuestMemory, offset: u64, value: u32) -> bool {
    match offset {
        QUEUE_NUM => u16::try_from(value).is_ok_and(|size| queue.try_set_size(size).is_ok()),
        QUEUE_READY => {
            queue.set_ready(value == 1);
            let valid = value == 0 || (value == 1 && queue.is_valid(memory));
            queue.set_ready(value == 1 && valid);
            valid
        }
        QUEUE_DESC_LOW => set_address(queue.desc_table(), Half::Low, value, |address| {
            queue.try_set_desc_table_address(address)
        }),
        QUEUE_DESC_HIGH => set_address(queue.desc_table(), Half::High, value, |address| {
            queue.try_set_desc_table_address(address)
        }),
        QUEUE_DRIVER_LOW => set_address(queue.avail_ring(), Half::Low, value, |address| {
            queue.try_set_avail_ring_address(address)
        }),
        QUEUE_DRIVER_HIGH => set_address(queue.avail_ring(), Half::High, value, |address| {
            queue.try_set_avail_ring_address(address)
        }),
        QUEUE_DEVICE_LOW => set_address(queue.used_ring(), Half::Low, value, |address| {
            queue.try_set_used_ring_address(address)
        }),
        QUEUE_DEVICE_HIGH => set_address(queue.used_ring(), Half::High, value, |address| {
            queue.try_set_used_ring_address(address)
        }),
        _ => false,
    }
}

enum Half {
    Low,
    High,
}

/// Replaces half of an address; false if the result is not aligned as it must be.
fn set_address(
    old: u64,
    half: Half,
    value: u32,
    set: impl FnOnce(vm_memory::GuestAddress) -> Result<(), virtio_queue::Error>,
) -> bool {
    let address = match half {
        Half::Low => (old & !0xffff_ffff) | u64::from(value),
        Half::High => (old & 0xffff_ffff) | (u64::from(value) << 32),
    };
    set(vm_memory::GuestAddress(address)).is_ok()
}

fn low(value: u64) -> u32 {
    (value & 0xffff_ffff) as u32
}

fn high(value: u64) -> u32 {
    (value >> 32) as u32
}

#[cfg(test)]
mod tests;
