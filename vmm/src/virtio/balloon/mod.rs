//! The memory balloon (virtio 1.3 §5.5): the guest reports memory that it does not use, and the host takes it back.
//!
//! With free page reporting the guest does so by itself all the time; memory that it touches again comes back,
//! zeroed, with the next page fault. Nobody asks it to inflate the balloon, but if it does, those pages go too.

use vm_memory::GuestAddress;

use super::queue::{Budget, Chain, Malformed, QueueSpec, Verdict, Virtqueue};
use super::{Description, Device};
use crate::machine::memory::{self, GuestMemory};

const ID: u32 = 5;
const INFLATE: usize = 0;
const DEFLATE: usize = 1;
const REPORTING: usize = 2;

/// `VIRTIO_BALLOON_F_DEFLATE_ON_OOM`: a guest short of memory may take pages back without asking.
const F_DEFLATE_ON_OOM: u64 = 1 << 2;
/// `VIRTIO_BALLOON_F_PAGE_REPORTING`.
const F_PAGE_REPORTING: u64 = 1 << 5;

/// Page frame numbers are in units of 4 KiB, whatever the guest's pages are.
const PFN_SHIFT: u64 = 12;
/// Most page frame numbers in one request; Linux sends 256.
const MAX_PFNS: usize = 1024;

/// Most bytes of memory in one report. Linux reports 32 blocks of at most 4 MiB at a time.
const MAX_REPORT_BYTES: usize = 1 << 30;
/// Requests before others get their turn; each may take the host a while.
const BUDGET: u16 = 8;

/// `num_pages` (wanted: none) and `actual` (told by the guest, believed by nobody).
const CONFIG_BYTES: usize = 8;
const ACTUAL: std::ops::Range<usize> = 4..8;

/// The balloon device.
#[derive(Debug, Default)]
pub struct Balloon {
    queues: Vec<Option<Virtqueue>>,
}

/// Gives the pages back whose numbers the chain holds, neighbours together.
fn inflate(memory: &GuestMemory, chain: &Chain) {
    let mut run: Option<(u64, u64)> = None;
    let discard = |(first, count): (u64, u64)| {
        // A page that does not exist is the guest's mistake and nobody's loss.
        let _ = memory::discard(memory, GuestAddress(first << PFN_SHIFT), count << PFN_SHIFT);
    };
    for index in 0..MAX_PFNS {
        let mut bytes = [0; 4];
        if chain.readable.read(index * 4, &mut bytes) < 4 {
            break;
        }
        let page = u64::from(u32::from_le_bytes(bytes));
        run = match run {
            Some((first, count)) if first + count == page => Some((first, count + 1)),
            Some((first, count)) if page + 1 == first => Some((page, count + 1)),
            previous => {
                if let Some(previous) = previous {
                    discard(previous);
                }
                Some((page, 1))
            }
        };
    }
    if let Some(run) = run {
        discard(run);
    }
}

impl Device for Balloon {
    fn describe(&self) -> Description {
        let queue = |max_chain_bytes| QueueSpec {
            size: 128,
            max_chain_bytes,
            signal_every: 128,
            malformed: Malformed::GiveBack,
        };
        Description {
            name: "balloon",
            id: ID,
            features: F_DEFLATE_ON_OOM | F_PAGE_REPORTING,
            queues: vec![queue(MAX_PFNS * 4), queue(MAX_PFNS * 4), queue(MAX_REPORT_BYTES)],
            config: vec![0; CONFIG_BYTES],
            writable_config: ACTUAL,
        }
    }

    fn activate(&mut self, _features: u64, queues: Vec<Option<Virtqueue>>) {
        self.queues = queues;
    }

    fn reset(&mut self) {
        self.queues.clear();
    }

    fn serve(&mut self, index: usize) {
        let Some(Some(queue)) = self.queues.get_mut(index) else { return };
        let memory = queue.memory().clone();
        queue.serve(&mut Budget::new(BUDGET), |chain| {
            match index {
                INFLATE => inflate(&memory, chain),
                REPORTING => chain.writable.discard(),
                // Deflated pages come back by themselves when they are touched.
                DEFLATE => {}
                _ => {}
            }
            Verdict::Used(0)
        });
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;

    #[test]
    fn inflating_gives_pages_back_and_survives_pages_that_do_not_exist() {
        let memory = memory::allocate(64).unwrap();
        let pages: [u32; 5] = [300, 301, 299, u32::MAX, 310];
        let bytes: Vec<u8> = pages.iter().flat_map(|page| page.to_le_bytes()).collect();
        memory.write_slice(&bytes, GuestAddress(0x1000)).unwrap();
        for page in 298..=311u64 {
            memory.write_obj(1u8, GuestAddress(page << PFN_SHIFT)).unwrap();
        }
        let mut chain = Chain::default();
        assert!(chain.readable.push(&memory, GuestAddress(0x1000), bytes.len() as u32));
        inflate(&memory, &chain);
        let left: Vec<u64> = (298..=311u64)
            .filter(|page| memory.read_obj::<u8>(GuestAddress(page << PFN_SHIFT)).unwrap() == 1)
            .collect();
        assert_eq!(left, [298, 302, 303, 304, 305, 306, 307, 308, 309, 311]);
    }
}
