//! From the guest to the tap.

use std::io;
use std::os::fd::AsFd;

use super::{HEADER_BYTES, MAX_FRAME_BYTES};
use crate::virtio::queue::{Chain, QueueBroken, Virtqueue};

/// Frames after which the guest hears that its buffers are free, even while there are more to send.
const SIGNAL_EVERY: usize = 64;
/// Most frames per call.
const BUDGET: usize = 256;

/// One transmit queue.
#[derive(Debug)]
pub struct Transmitter {
    queue: Virtqueue,
    chain: Chain,
}

impl Transmitter {
    /// A transmitter on a queue in use.
    pub fn new(queue: Virtqueue) -> Self {
        Self { queue, chain: Chain::default() }
    }

    /// Sends frames until there are none or the tap takes no more; true if it stopped for others' sake before.
    pub fn transmit(&mut self, tap: &impl AsFd) -> Result<bool, QueueBroken> {
        let mut sent = 0;
        loop {
            self.queue.pause_notifications();
            while self.queue.pop(&mut self.chain)? {
                if let Err(error) = self.send(tap)
                    && error.kind() == io::ErrorKind::WouldBlock
                {
                    // The tap says when there is room again; the frame stays in the queue.
                    self.queue.undo_pop(1);
                    self.queue.signal();
                    return Ok(false);
                }
                // A frame that the host refuses is lost, as on any wire.
                self.queue.push_used(self.chain.head, 0)?;
                sent += 1;
                if sent % SIGNAL_EVERY == 0 {
                    self.queue.signal();
                }
                if sent == BUDGET {
                    return Ok(true);
                }
            }
            if !self.queue.resume_notifications() {
                break;
            }
        }
        self.queue.signal();
        Ok(false)
    }

    fn send(&self, tap: &impl AsFd) -> io::Result<()> {
        let frame = &self.chain.readable;
        if frame.len() <= HEADER_BYTES || frame.len() > MAX_FRAME_BYTES {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        frame.write_to(tap).map(drop)
    }
}
