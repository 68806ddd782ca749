//! The device's side of a virtqueue, and the one place where descriptor chains are checked.
//!
//! A [`Chain`] that leaves [`Virtqueue::pop`] is entirely guest memory, has its device-readable part before its
//! device-writable part, ends, and is no longer than the queue's owner allows. Devices never see a descriptor.

use std::sync::Arc;

use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueOwnedT, QueueT};

use super::buffers::Buffers;
use super::interrupt::Interrupt;
use crate::machine::memory::GuestMemory;

/// Most descriptors in one chain; as many as one `readv` takes.
pub const MAX_DESCRIPTORS: usize = 1024;

/// The guest broke the rules of a queue beyond repair; it has to reset the device.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("The guest broke a virtqueue")]
pub struct QueueBroken;

/// One request of the guest.
#[derive(Debug, Default)]
pub struct Chain {
    /// Names the chain when it is given back.
    pub head: u16,
    /// What the device reads.
    pub readable: Buffers,
    /// What the device writes.
    pub writable: Buffers,
}

/// A queue in use.
#[derive(Debug)]
pub struct Virtqueue {
    queue: Queue,
    memory: GuestMemory,
    interrupt: Arc<Interrupt>,
    max_bytes: usize,
}

impl Virtqueue {
    /// Wraps a queue that the guest has set up. Chains of more than `max_bytes` in one direction are malformed.
    #[must_use]
    pub fn new(queue: Queue, memory: GuestMemory, interrupt: Arc<Interrupt>, max_bytes: usize) -> Self {
        Self { queue, memory, interrupt, max_bytes }
    }

    /// The memory that chains point into.
    #[must_use]
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// Takes the next well-formed chain into `chain`; false when there is none. Malformed chains on the way are
    /// given back unused and counted.
    ///
    /// # Errors
    /// When the ring itself is broken: the device must stop using this queue, and the guest is told to reset it.
    pub fn pop(&mut self, chain: &mut Chain) -> Result<bool, QueueBroken> {
        loop {
            let Some(head) = self.pop_unchecked(chain)? else { return Ok(false) };
            if head {
                return Ok(true);
            }
            self.interrupt.count_guest_error();
            self.push_used(chain.head, 0)?;
        }
    }

    /// Takes one chain; `Some(false)` says that it is malformed.
    fn pop_unchecked(&mut self, chain: &mut Chain) -> Result<Option<bool>, QueueBroken> {
        chain.readable.clear();
        chain.writable.clear();
        if !self.queue.ready() {
            return Ok(None);
        }
        let size = self.queue.size();
        let memory = &self.memory;
        let popped = match self.queue.iter(memory) {
            Ok(mut available) => available.next(),
            Err(_) => return Err(self.broken()),
        };
        let Some(descriptors) = popped else { return Ok(None) };
        chain.head = descriptors.head_index();
        if chain.head >= size {
            return Err(self.broken());
        }
        Ok(Some(collect(descriptors, memory, self.max_bytes, chain)))
    }

    /// Puts the last `count` chains back, as if they had not been taken.
    pub fn undo_pop(&mut self, count: u16) {
        self.queue.set_next_avail(self.queue.next_avail().wrapping_sub(count));
    }

    /// Gives a chain back of which the device wrote the first `written` bytes of the writable part.
    ///
    /// # Errors
    /// When the used ring cannot be written.
    pub fn push_used(&mut self, head: u16, written: u32) -> Result<(), QueueBroken> {
        self.queue.add_used(&self.memory, head, written).map_err(|_| self.broken())
    }

    /// Interrupts the guest if it wants to know about what was given back.
    pub fn signal(&mut self) {
        if self.queue.needs_notification(&self.memory).unwrap_or(true) {
            self.interrupt.queue_used();
        }
    }

    /// Asks the guest not to notify the device; it is looking anyway.
    pub fn pause_notifications(&mut self) {
        let _ = self.queue.disable_notification(&self.memory);
    }

    /// Asks the guest to notify the device of new chains; true when there are some already.
    pub fn resume_notifications(&mut self) -> bool {
        self.queue.ready() && self.queue.enable_notification(&self.memory).unwrap_or(false)
    }

    fn broken(&mut self) -> QueueBroken {
        self.queue.set_ready(false);
        self.interrupt.count_guest_error();
        self.interrupt.needs_reset();
        QueueBroken
    }
}

/// Checks a chain and gathers its buffers; false if it is malformed.
fn collect(
    descriptors: impl Iterator<Item = Descriptor>,
    memory: &GuestMemory,
    max_bytes: usize,
    chain: &mut Chain,
) -> bool {
    let mut unfinished = true;
    let mut count = 0;
    for descriptor in descriptors {
        // The iterator stops silently at whatever it dislikes; a chain is whole only if its last descriptor says so.
        unfinished = descriptor.has_next();
        count += 1;
        if count > MAX_DESCRIPTORS {
            return false;
        }
        if descriptor.len() == 0 {
            continue;
        }
        let part = if descriptor.is_write_only() {
            &mut chain.writable
        } else if chain.writable.is_empty() {
            &mut chain.readable
        } else {
            return false;
        };
        if !part.push(memory, descriptor.addr(), descriptor.len()) || part.len() > max_bytes {
            return false;
        }
    }
    !unfinished
}

#[cfg(test)]
mod tests;
