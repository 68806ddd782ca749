//! From the tap to the guest.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;

use super::HEADER_BYTES;
use crate::virtio::buffers::Buffers;
use crate::virtio::queue::{Chain, MAX_DESCRIPTORS, QueueBroken, Virtqueue};

/// Where the header says how many buffers a frame fills.
const NUM_BUFFERS_OFFSET: usize = 10;
/// Most frames per call, so that a flood at one queue does not starve the others.
const BUDGET: usize = 256;

/// One receive queue with the guest's buffers, checked in advance and laid out for the next frame.
#[derive(Debug)]
pub struct Receiver {
    queue: Virtqueue,
    chain: Chain,
    buffers: Buffers,
    /// Each chain behind `buffers`, in order.
    chains: VecDeque<Posted>,
    mergeable: bool,
    /// Bytes of buffers that have to be there before a frame is read.
    least: usize,
    scratch: Buffers,
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
        Self {
            queue,
            chain: Chain::default(),
            buffers: Buffers::new(),
            chains: VecDeque::new(),
            mergeable,
            least,
            scratch: Buffers::new(),
        }
    }

    /// Moves frames until `tap` has none or the guest has no buffers; true if it stopped for others' sake before.
    pub fn receive(&mut self, tap: &impl AsFd) -> Result<bool, QueueBroken> {
        let mut moved = 0;
        while moved < BUDGET && self.gather()? {
            match self.receive_one(tap) {
                Ok(0) => break,
                Ok(bytes) => self.give_back(bytes)?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                // Nothing left, or the interface went away or down.
                Err(_) => break,
            }
            moved += 1;
        }
        if moved > 0 {
            self.queue.signal();
        }
        Ok(moved == BUDGET)
    }

    /// Takes buffers from the queue until a frame of any size fits. False if there are too few; then the guest's next
    /// ones come with a notification.
    fn gather(&mut self) -> Result<bool, QueueBroken> {
        while !self.is_enough() {
            if !self.queue.pop(&mut self.chain)? {
                if self.queue.resume_notifications() {
                    continue;
                }
                return Ok(false);
            }
            let (head, bytes, pieces) =
                (self.chain.head, self.chain.writable.len(), self.chain.writable.pieces());
            let useless = bytes < HEADER_BYTES || self.buffers.pieces() + pieces > MAX_DESCRIPTORS;
            if useless {
                self.queue.push_used(head, 0)?;
                continue;
            }
            self.buffers.append(&mut self.chain.writable);
            self.chains.push_back(Posted { head, bytes, pieces });
        }
        Ok(true)
    }

    fn is_enough(&self) -> bool {
        if self.mergeable {
            self.buffers.len() >= self.least || self.buffers.pieces() * 2 > MAX_DESCRIPTORS
        } else {
            !self.chains.is_empty()
        }
    }

    fn receive_one(&mut self, tap: &impl AsFd) -> io::Result<usize> {
        if self.mergeable {
            return self.buffers.read_from(tap);
        }
        // One frame, one chain: the tap cuts off what does not fit.
        let length = self.chains.front().map_or(0, |posted| posted.bytes);
        self.buffers.slice_into(0, length, &mut self.scratch);
        self.scratch.read_from(tap).map(|bytes| bytes.min(length))
    }

    /// Gives the chains to the guest that a frame of `bytes` filled.
    fn give_back(&mut self, bytes: usize) -> Result<(), QueueBroken> {
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
            self.queue.push_used(posted.head, u32::try_from(written).unwrap_or(0))?;
        }
        Ok(())
    }
}
