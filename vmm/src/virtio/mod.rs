//! The virtio devices (virtio 1.3), each in a folder of its own, behind the MMIO transport.

pub mod balloon;
pub mod block;
pub mod buffers;
pub mod interrupt;
pub mod net;
pub mod queue;
pub mod rng;
pub mod slot;
#[cfg(test)]
pub(crate) mod testing;
pub mod transport;
pub mod vsock;

use std::io;

use crate::event::{Readiness, Registrar};
use queue::Virtqueue;

/// `VIRTIO_F_INDIRECT_DESC`.
pub const F_INDIRECT_DESC: u64 = 1 << 28;
/// `VIRTIO_F_EVENT_IDX`.
pub const F_EVENT_IDX: u64 = 1 << 29;
/// `VIRTIO_F_VERSION_1`.
pub const F_VERSION_1: u64 = 1 << 32;

/// First token of a device's queues; a device's own descriptors use the tokens below.
pub const QUEUE_TOKENS: u32 = 0xffff_0000;

/// A device behind a transport. Calls come one at a time; between [`Device::activate`] and [`Device::reset`] the
/// device owns its queues.
pub trait Device: Send {
    /// Its name in logs and metrics.
    fn name(&self) -> &'static str;

    /// Its virtio device id (virtio 1.3 §5).
    fn id(&self) -> u32;

    /// The features that it offers, without those of the transport.
    fn features(&self) -> u64;

    /// Largest size of each of its queues, powers of two.
    fn queue_sizes(&self) -> &[u16];

    /// Most bytes that a chain of `queue` may have in one direction.
    fn max_chain_bytes(&self, queue: usize) -> usize;

    /// Its configuration space, whose bytes beyond the end read as zeros.
    fn config(&self) -> &[u8];

    /// The guest wrote to the configuration space; most devices have nothing writable.
    fn write_config(&mut self, _offset: usize, _data: &[u8]) {}

    /// The device joins an event loop that from now on calls [`Device::ready`]. Called once, before the guest runs.
    ///
    /// # Errors
    /// When its descriptors cannot be waited for.
    fn attach(&mut self, _registrar: Registrar) -> io::Result<()> {
        Ok(())
    }

    /// The driver is ready with `features` accepted. Queues that it did not set up are `None`.
    fn activate(&mut self, features: u64, queues: Vec<Option<Virtqueue>>);

    /// The driver gives the device up; all queues must be dropped.
    fn reset(&mut self);

    /// The guest may have added buffers to `queue`. Only called while active.
    fn notified(&mut self, queue: usize);

    /// One of the device's own descriptors is ready. Called whether active or not.
    fn ready(&mut self, _token: u32, _readiness: Readiness) {}
}
