//! Requests that the server has and the guest waits for.

use std::collections::HashMap;

use super::{QUEUE_SIZE, QUEUES};
use crate::virtio::buffers::Buffers;

/// Most pieces of guest memory that all waiting requests together may name, each of which costs 16 bytes of the host's memory:
/// those of some 250 requests that have room for 1 MiB in pages.
const MAX_PIECES: usize = 64 << 10;

/// A chain whose request was sent.
#[derive(Debug)]
pub(super) struct Request {
    /// The queue that it came from.
    pub queue: usize,
    /// Names the chain when it is given back.
    pub head: u16,
    /// Room for the reply.
    pub writable: Buffers,
}

/// Whether another request may be sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Room {
    /// It may.
    Yes,
    /// Not before a reply has come.
    Later,
    /// The guest has more chains of a queue under way than the queue has places.
    Never,
    /// One of the same number is waiting, so that a reply could not be told from that one's.
    Taken,
}

/// All of them, by the numbers that the guest gave them.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    requests: HashMap<u64, Request>,
    chains: [u16; QUEUES],
    pieces: usize,
}

impl Waiting {
    /// Whether the request `unique` of `queue`, with room for a reply in so many pieces, may be added.
    pub fn room(&self, unique: u64, queue: usize, pieces: usize) -> Room {
        if self.chains.get(queue).is_none_or(|count| *count >= QUEUE_SIZE) {
            Room::Never
        } else if self.requests.contains_key(&unique) {
            Room::Taken
        } else if self.pieces + pieces > MAX_PIECES {
            Room::Later
        } else {
            Room::Yes
        }
    }

    /// Adds a request, for which there is [`Room::Yes`].
    pub fn add(&mut self, unique: u64, request: Request) {
        self.pieces += request.writable.pieces();
        if let Some(count) = self.chains.get_mut(request.queue) {
            *count += 1;
        }
        self.requests.insert(unique, request);
    }

    /// Most bytes of a reply to the request `unique`; `None` if there is no such request.
    pub fn reply_bytes(&self, unique: u64) -> Option<usize> {
        self.requests.get(&unique).map(|request| request.writable.len())
    }

    /// Takes a request off.
    pub fn take(&mut self, unique: u64) -> Option<Request> {
        let request = self.requests.remove(&unique)?;
        self.pieces = self.pieces.saturating_sub(request.writable.pieces());
        if let Some(count) = self.chains.get_mut(request.queue) {
            *count = count.saturating_sub(1);
        }
        Some(request)
    }

    /// Takes all requests off, with their numbers.
    pub fn take_all(&mut self) -> impl Iterator<Item = (u64, Request)> + use<> {
        std::mem::take(self).requests.into_iter()
    }
}
