//! The virtio devices (virtio 1.3), each in a folder of its own, behind the MMIO transport.
//!
//! A device and its queues belong to one thread ([`thread`]), which nothing waits for but a driver that resets its
//! device. Processors reach a device's registers ([`mmio`]), which are kept apart from it.

pub mod balloon;
pub mod block;
pub mod buffers;
pub mod fs;
pub mod interrupt;
pub mod mmio;
pub mod net;
pub mod owner;
pub mod queue;
pub mod rng;
#[cfg(test)]
pub(crate) mod testing;
pub mod thread;
pub mod transport;
pub mod vsock;

use std::io;
use std::ops::Range;

use crate::event::{Readiness, Registrar};
use queue::{QueueSpec, Virtqueue};

/// `VIRTIO_F_INDIRECT_DESC`.
pub const F_INDIRECT_DESC: u64 = 1 << 28;
/// `VIRTIO_F_EVENT_IDX`.
pub const F_EVENT_IDX: u64 = 1 << 29;
/// `VIRTIO_F_VERSION_1`.
pub const F_VERSION_1: u64 = 1 << 32;

/// First token of a device's queues; a device's own descriptors use the tokens below.
pub const QUEUE_TOKENS: u32 = 0xffff_0000;

/// What the guest can read about a device. Only its configuration space may change, through its registers.
#[derive(Debug, Clone, Default)]
pub struct Description {
    /// The device's name in logs and metrics.
    pub name: &'static str,
    /// Its virtio device id (virtio 1.3 §5).
    pub id: u32,
    /// The features that it offers, without those of the transport.
    pub features: u64,
    /// Its queues.
    pub queues: Vec<QueueSpec>,
    /// Its configuration space, whose bytes beyond the end read as zeros.
    pub config: Vec<u8>,
    /// The one field of the configuration space that the driver may write, empty if there is none. The device does not
    /// hear of it.
    pub writable_config: Range<usize>,
}

/// A device, owned by one thread, which makes all calls. None of them may wait for anything but the processor:
/// what can take long is done elsewhere and its end reported through a descriptor.
///
/// A device begins inactive. [`Device::activate`] and [`Device::reset`] alternate; between them the device owns its
/// queues. [`Device::event`] may come at any time, [`Device::serve`] only while active. While the machine is paused no call is
/// made; after a pause [`Device::serve`] is called for each queue.
pub trait Device: Send {
    /// What the guest can read about it; asked once, before the guest runs.
    fn describe(&self) -> Description;

    /// The device joins its thread's event loop, which from now on calls [`Device::event`] for the descriptors that
    /// the device registers. Called once, before the guest runs.
    ///
    /// # Errors
    /// When its descriptors cannot be waited for.
    fn attach(&mut self, _registrar: Registrar) -> io::Result<()> {
        Ok(())
    }

    /// The driver is ready with `features` accepted. Queues that it did not set up are `None`. [`Device::serve`]
    /// follows for each queue.
    fn activate(&mut self, features: u64, queues: Vec<Option<Virtqueue>>);

    /// The driver gives the device up: all queues must be dropped. The guest is told that the reset is complete once
    /// [`Device::in_flight`] is 0.
    fn reset(&mut self);

    /// The guest may have added chains to `queue`, or an earlier call ran out of its budget.
    fn serve(&mut self, queue: usize);

    /// One of the device's own descriptors is ready.
    fn event(&mut self, _token: u32, _readiness: Readiness) {}

    /// How many requests others still work at, with the guest's memory in their hands. When the number falls, it does
    /// in [`Device::event`].
    fn in_flight(&self) -> usize {
        0
    }
}
