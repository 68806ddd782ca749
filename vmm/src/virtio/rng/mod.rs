//! Entropy from the host (virtio 1.3 §5.4).

use super::buffers::Buffers;
use super::queue::{Budget, Malformed, QueueSpec, Verdict, Virtqueue};
use super::{Description, Device};

const ID: u32 = 4;
const QUEUE: QueueSpec =
    QueueSpec { size: 64, max_chain_bytes: 1 << 20, signal_every: 64, malformed: Malformed::GiveBack };

/// Most random bytes per request. Guests ask for 64; a request that names the same page a thousand times over must
/// not keep the host busy.
const MAX_BYTES: usize = 4096;
/// Requests before others get their turn.
const BUDGET: u16 = 16;

/// The entropy device.
#[derive(Debug, Default)]
pub struct Rng {
    queue: Option<Virtqueue>,
}

/// Fills the start of `buffers` with random bytes; returns how many.
fn fill(buffers: &Buffers) -> u32 {
    let mut bytes = [0; MAX_BYTES];
    let wanted = buffers.len().min(MAX_BYTES);
    let Some(part) = bytes.get_mut(..wanted) else { return 0 };
    match rustix::rand::getrandom(&mut *part, rustix::rand::GetRandomFlags::empty()) {
        Ok(count) => {
            let random = part.get(..count).unwrap_or_default();
            u32::try_from(buffers.write(0, random)).unwrap_or(0)
        }
        Err(_) => 0,
    }
}

impl Device for Rng {
    fn describe(&self) -> Description {
        Description { name: "rng", id: ID, queues: vec![QUEUE], ..Description::default() }
    }

    fn activate(&mut self, _features: u64, queues: Vec<Option<Virtqueue>>) {
        self.queue = queues.into_iter().next().flatten();
    }

    fn reset(&mut self) {
        self.queue = None;
    }

    fn serve(&mut self, _queue: usize) {
        if let Some(queue) = &mut self.queue {
            queue.serve(&mut Budget::new(BUDGET), |chain| Verdict::Used(fill(&chain.writable)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::memory;
    use crate::virtio::testing::Driver;
    use vm_memory::GuestAddress;

    #[test]
    fn a_request_gets_random_bytes_up_to_the_cap() {
        let memory = memory::allocate(64).unwrap();
        let mut buffers = Buffers::new();
        for _ in 0..64 {
            assert!(buffers.push(&memory, GuestAddress(0x10_0000), 0x1000));
        }
        assert_eq!(fill(&buffers), MAX_BYTES as u32);
        let mut read = [0; 64];
        buffers.read(0, &mut read);
        assert_ne!(read, [0; 64]);
        assert_eq!(fill(&Buffers::new()), 0);
    }
    #[test]
    fn a_guest_that_asks_without_end_is_served_in_turns() {
        let mut driver = Driver::new();
        let mut rng = Rng::default();
        rng.activate(0, vec![Some(driver.queue())]);
        for _ in 0..3 {
            for _ in 0..BUDGET {
                driver.add(&[], &[(0x20_0000, 64)]);
            }
            rng.serve(0);
            assert_eq!(driver.used().len(), usize::from(BUDGET));
            assert!(driver.was_notified(), "what may have come meanwhile is left for the next turn");
        }
        rng.serve(0);
        assert!(!driver.was_notified());
    }
}
