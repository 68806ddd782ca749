//! From the guest to the tap.

use std::io;
use std::os::fd::AsFd;

use super::{HEADER_BYTES, MAX_FRAME_BYTES};
use crate::virtio::buffers::Buffers;
use crate::virtio::queue::{Budget, Verdict, Virtqueue};

/// Sends frames until there are none or the tap takes no more.
pub fn transmit(queue: &mut Virtqueue, tap: &impl AsFd, budget: &mut Budget) {
    queue.serve(budget, |chain| match send(&chain.readable, tap) {
        // The tap says when there is room again; the frame stays in the queue.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Verdict::PutBack,
        // A frame that the host refuses is lost, as on any wire.
        _ => Verdict::Used(0),
    });
}

fn send(frame: &Buffers, tap: &impl AsFd) -> io::Result<()> {
    if frame.len() <= HEADER_BYTES || frame.len() > MAX_FRAME_BYTES {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    frame.write_to(tap).map(drop)
}
