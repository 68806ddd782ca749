//! The device's side of a virtqueue: the one loop that serves queues, and the one place where descriptor chains are
//! checked.
//!
//! A [`Chain`] that reaches a device is entirely guest memory, has its device-readable part before its device-writable
//! part, ends, and is no longer than the queue allows. Devices never see a descriptor.

use std::sync::Arc;

use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueOwnedT, QueueT};

use super::buffers::Buffers;
use super::interrupt::Interrupt;
use crate::event::EventFd;
use crate::machine::memory::GuestMemory;

/// Most descriptors in one chain; as many as one `readv` takes.
pub const MAX_DESCRIPTORS: usize = 1024;

/// What a device says about one of its queues.
#[derive(Debug, Clone, Copy)]
pub struct QueueSpec {
    /// Largest size, a power of two.
    pub size: u16,
    /// Most bytes that a chain may have in one direction; longer ones are malformed.
    pub max_chain_bytes: usize,
    /// Chains given back after which the guest hears of it, even if more are waiting.
    pub signal_every: u16,
    /// What becomes of malformed chains.
    pub malformed: Malformed,
}

/// What becomes of a malformed chain. It is counted as the guest's error in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Malformed {
    /// It is given back with nothing written.
    GiveBack,
    /// The device asks for a reset: where drivers look for a status inside the chain, one that is given back without
    /// would pass for a success.
    Break,
}

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

/// What a device did with a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is done with it, having written that many bytes of the writable part.
    Used(u32),
    /// The same, and the device wants no more for now.
    LastUsed(u32),
    /// It keeps it, with the buffers that it took out of the chain, and will [`Virtqueue::give_back`] its head.
    Kept,
    /// The same, and the device wants no more for now.
    LastKept,
    /// It cannot do anything with it now: the chain stays in the queue, and the device comes back by itself.
    PutBack,
    /// The guest broke the device's rules beyond repair and has to reset it.
    Broken,
}

/// Why [`Virtqueue::serve`] came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// The queue is empty; the guest notifies the device of its next chain.
    Empty,
    /// The device wanted no more. It serves the queue again when it does.
    Stopped,
    /// The budget is used up. The queue has notified itself, so that it is served again when others had their turn.
    OutOfBudget,
    /// The queue is broken, and the guest was told to reset the device. It stays out of use.
    Broken,
}

/// How many chains, well-formed or not, may be taken before others get their turn.
#[derive(Debug)]
pub struct Budget(u16);

impl Budget {
    /// A budget of `chains`.
    #[must_use]
    pub fn new(chains: u16) -> Self {
        Self(chains)
    }

    /// Takes one away; false if there is none left.
    pub fn spend(&mut self) -> bool {
        self.0.checked_sub(1).map(|left| self.0 = left).is_some()
    }
}

/// A queue in use.
#[derive(Debug)]
pub struct Virtqueue {
    queue: Queue,
    spec: QueueSpec,
    memory: GuestMemory,
    interrupt: Arc<Interrupt>,
    notification: Arc<EventFd>,
    chain: Chain,
    unsignalled: u16,
}

impl Virtqueue {
    /// Wraps a queue that the guest has set up. `notification` is what the guest notifies it through.
    #[must_use]
    pub fn new(
        queue: Queue,
        spec: QueueSpec,
        memory: GuestMemory,
        interrupt: Arc<Interrupt>,
        notification: Arc<EventFd>,
    ) -> Self {
        Self { queue, spec, memory, interrupt, notification, chain: Chain::default(), unsignalled: 0 }
    }

    /// The memory that chains point into.
    #[must_use]
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// Hands chain after chain to `serve_one`, until there are none, it wants no more or `budget` is used up; then
    /// interrupts the guest if it wants to know about what was given back here.
    pub fn serve(&mut self, budget: &mut Budget, serve_one: impl FnMut(&mut Chain) -> Verdict) -> Progress {
        let mut chain = std::mem::take(&mut self.chain);
        let mut gave_back = false;
        let progress = self.run(budget, &mut chain, &mut gave_back, serve_one).unwrap_or(Progress::Broken);
        self.chain = chain;
        if gave_back {
            self.signal();
        }
        progress
    }

    fn run(
        &mut self,
        budget: &mut Budget,
        chain: &mut Chain,
        gave_back: &mut bool,
        mut serve_one: impl FnMut(&mut Chain) -> Verdict,
    ) -> Result<Progress, Broken> {
        self.pause_notifications();
        while budget.spend() {
            let Some(well_formed) = self.pop(chain)? else {
                if self.resume_notifications() {
                    self.pause_notifications();
                    continue;
                }
                return Ok(Progress::Empty);
            };
            let verdict = match (well_formed, self.spec.malformed) {
                (true, _) => serve_one(chain),
                (false, Malformed::GiveBack) => {
                    self.interrupt.count_guest_error();
                    Verdict::Used(0)
                }
                (false, Malformed::Break) => Verdict::Broken,
            };
            match verdict {
                Verdict::Used(written) | Verdict::LastUsed(written) => {
                    *gave_back = true;
                    self.push_used(chain.head, written)?;
                    if matches!(verdict, Verdict::LastUsed(_)) {
                        return Ok(Progress::Stopped);
                    }
                }
                Verdict::Kept => {}
                Verdict::LastKept => return Ok(Progress::Stopped),
                Verdict::PutBack => {
                    // It was the last that was taken, so that its place is the one before the next.
                    self.queue.set_next_avail(self.queue.next_avail().wrapping_sub(1));
                    return Ok(Progress::Stopped);
                }
                Verdict::Broken => return Err(self.broken()),
            }
        }
        self.serve_again();
        Ok(Progress::OutOfBudget)
    }

    /// Notifies the queue as the guest would, so that it is served again when others had their turn.
    pub fn serve_again(&self) {
        self.notification.signal();
    }

    /// Gives back a chain that was kept, of which the device wrote `written` bytes. [`Virtqueue::signal`] tells the
    /// guest, if nothing else does before.
    pub fn give_back(&mut self, head: u16, written: u32) {
        // A queue that breaks here has told the guest.
        let _ = self.push_used(head, written);
    }

    /// Interrupts the guest if it wants to know about what was given back.
    pub fn signal(&mut self) {
        if self.unsignalled > 0 {
            self.unsignalled = 0;
            if self.queue.needs_notification(&self.memory).unwrap_or(true) {
                self.interrupt.queue_used();
            }
        }
    }

    /// Takes one chain; `Some(false)` says that it is malformed.
    fn pop(&mut self, chain: &mut Chain) -> Result<Option<bool>, Broken> {
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
        Ok(Some(collect(descriptors, memory, self.spec.max_chain_bytes, chain)))
    }

    fn push_used(&mut self, head: u16, written: u32) -> Result<(), Broken> {
        if !self.queue.ready() {
            return Err(Broken);
        }
        self.queue.add_used(&self.memory, head, written).map_err(|_| self.broken())?;
        self.unsignalled += 1;
        if self.unsignalled >= self.spec.signal_every {
            self.signal();
        }
        Ok(())
    }

    /// Asks the guest not to notify the device; it is looking anyway.
    fn pause_notifications(&mut self) {
        let _ = self.queue.disable_notification(&self.memory);
    }

    /// Asks the guest to notify the device of new chains; true when there are some already.
    fn resume_notifications(&mut self) -> bool {
        self.queue.ready() && self.queue.enable_notification(&self.memory).unwrap_or(false)
    }

    fn broken(&mut self) -> Broken {
        self.queue.set_ready(false);
        self.interrupt.count_guest_error();
        self.interrupt.needs_reset();
        Broken
    }
}

/// The guest broke the rules of a queue beyond repair; it was told to reset the device.
struct Broken;

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
