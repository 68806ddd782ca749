//! From the tap to the guest.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;

use super::HEADER_BYTES;
use crate::virtio::buffers::Buffers;
use crate::virtio::queue::{Budget, MAX_DESCRIPTORS, Verdict, Virtqueue};

/// Where the header says how many buffers a frame fills.
const NUM_BUFFERS_OFFSET: usize = 10;

/// One receive queue with the guest's buffers, checked in advance and laid out for the next frame.
#[derive(Debug)]
pub struct Receiver {
    queue: Virtqueue,
    buffers: Buffers,
    /// Each chain behind `buffers`, in order.
    chains: VecDeque<Posted>,
    mergeable: bool,
    /// Bytes of buffers that have to be there before a frame is read.
    least: usize,
}

#[derive(Debug, Clone, Copy)]
struct Posted {
    head: u16,
    bytes: usize,
    pieces: usize,
}

impl Receiver {
    /// A receiver for frames of up to `least` bytes, which may span chains if `mergeable`.
    pub fn new(queue: Virtqueue, mergeable: bool, least: usize) -> Self {
        Self { queue, buffers: Buffers::new(), chains: VecDeque::new(), mergeable, least }
    }

    /// Moves frames until `tap` has none or the guest has no buffers. If `budget`, which must not be empty, ends before,
    /// the queue has notified itself.
    pub fn receive(&mut self, tap: &impl AsFd, budget: &mut Budget) {
        let mut moved = false;
        while budget.spend() {
            if !self.gather(budget) {
                self.queue.signal();
                return;
            }
            match self.receive_one(tap) {
                Ok(bytes @ 1..) => {
                    self.hand_over(bytes);
                    moved = true;
                }
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                    // One frame is lost, as on any wire; there may be others behind it.
                }
                Ok(0) | Err(_) => {
                    self.queue.signal();
                    return;
                }
            }
        }
        self.queue.signal();
        // A tap that fails whatever is asked of it is left alone until it says that it has something.
        if moved {
            self.queue.serve_again();
        }
    }

    /// Takes buffers from the queue until a frame of any size fits. False if there are too few; then the guest's next
    /// ones come with a notification.
    fn gather(&mut self, budget: &mut Budget) -> bool {
        if self.is_enough() {
            return true;
        }
        let Self { queue, buffers, chains, mergeable, least } = self;
        queue.serve(budget, |chain| {
            let (head, bytes, pieces) = (chain.head, chain.writable.len(), chain.writable.pieces());
            if bytes < HEADER_BYTES || buffers.pieces() + pieces > MAX_DESCRIPTORS {
                return Verdict::Used(0);
            }
            buffers.append(&mut chain.writable);
            chains.push_back(Posted { head, bytes, pieces });
            if is_enough(buffers, *mergeable, *least) { Verdict::LastKept } else { Verdict::Kept }
        });
        self.is_enough()
    }

    fn is_enough(&self) -> bool {
        is_enough(&self.buffers, self.mergeable, self.least)
    }

    fn receive_one(&mut self, tap: &impl AsFd) -> io::Result<usize> {
        // Without mergeable buffers there is one chain at a time, and the tap cuts off what does not fit.
        self.buffers.read_from(tap).map(|bytes| bytes.min(self.buffers.len()))
    }

    /// Gives the chains to the guest that a frame of `bytes` filled.
    fn hand_over(&mut self, bytes: usize) {
        let mut filled = 0u16;
        let mut covered = 0;
        while covered < bytes {
            let Some(posted) = self.chains.get(usize::from(filled)) else { break };
            covered += posted.bytes;
            filled += 1;
        }
        self.buffers.write(NUM_BUFFERS_OFFSET, &filled.to_le_bytes());
        let mut left = bytes;
        for _ in 0..filled {
            let Some(posted) = self.chains.pop_front() else { break };
            let written = left.min(posted.bytes);
            left -= written;
            self.buffers.drop_pieces(posted.pieces);
            self.queue.give_back(posted.head, u32::try_from(written).unwrap_or(0));
        }
    }
}

fn is_enough(buffers: &Buffers, mergeable: bool, least: usize) -> bool {
    if mergeable {
        buffers.len() >= least || buffers.pieces() * 2 > MAX_DESCRIPTORS
    } else {
        !buffers.is_empty()
    }
}
