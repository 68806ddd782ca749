//! The memory balloon (virtio 1.3 §5.5): the guest reports memory that it does not use, and the host takes it back.
//!
//! With free page reporting the guest does so by itself all the time; memory that it touches again comes back,
//! zeroed, with the next page fault. A guest that is to have less memory than it was born with is asked to inflate the
//! balloon ([`ask`]). It may not take pages back when it runs short of them: what it was asked for is the node's again.

use vm_memory::GuestAddress;

use super::mmio::MmioDevice;
use super::queue::{Budget, Chain, Malformed, QueueSpec, Verdict, Virtqueue};
use super::{Description, Device};
use crate::machine::memory::{self, GuestMemory};

const ID: u32 = 5;
const INFLATE: usize = 0;
const DEFLATE: usize = 1;
const REPORTING: usize = 2;

/// `VIRTIO_BALLOON_F_PAGE_REPORTING`.
const F_PAGE_REPORTING: u64 = 1 << 5;

/// Page frame numbers are in units of 4 KiB, whatever the guest's pages are.
const PFN_SHIFT: u64 = 12;
/// Most page frame numbers in one request; Linux sends 256.
const MAX_PFNS: usize = 1024;

/// Most bytes of memory in one report. Linux reports 32 blocks of at most 4 MiB at a time.
const MAX_REPORT_BYTES: usize = 128 << 20;

/// Requests of each queue before others get their turn: the thread serves vsock and the entropy device too. What is given back
/// costs the host's kernel time, by the call and by the page: up to [`MAX_PFNS`] calls for a request to inflate, up to
/// [`MAX_REPORT_BYTES`] for a report; deflating costs nothing.
const BUDGETS: [u16; 3] = [2, 8, 1];

/// `num_pages`, which the guest is asked to give up, and `actual`, which it says it has: 32-bit numbers of pages.
const CONFIG_BYTES: usize = 8;
const NUM_PAGES: usize = 0;
const ACTUAL: std::ops::Range<usize> = 4..8;

/// Pages of 4 KiB.
const PAGES_PER_MIB: u32 = 256;

/// The balloon device.
#[derive(Debug, Default)]
pub struct Balloon {
    wanted_pages: u32,
    queues: Vec<Option<Virtqueue>>,
}

impl Balloon {
    /// A balloon that a guest is to fill with so much memory when it boots.
    #[must_use]
    pub fn new(mib: u32) -> Self {
        Self { wanted_pages: mib.saturating_mul(PAGES_PER_MIB), queues: Vec::new() }
    }
}

/// Asks the guest to have so much memory in the balloon behind these registers.
pub fn ask(registers: &MmioDevice, mib: u32) {
    registers.set_config(NUM_PAGES, mib.saturating_mul(PAGES_PER_MIB));
}

/// How many whole MiB the guest says are in the balloon. Nobody but the guest is harmed by a lie.
#[must_use]
pub fn given(registers: &MmioDevice) -> u32 {
    registers.config(ACTUAL.start) / PAGES_PER_MIB
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
        let mut config = self.wanted_pages.to_le_bytes().to_vec();
        config.resize(CONFIG_BYTES, 0);
        Description {
            name: "balloon",
            id: ID,
            features: F_PAGE_REPORTING,
            queues: vec![queue(MAX_PFNS * 4), queue(MAX_PFNS * 4), queue(MAX_REPORT_BYTES)],
            config,
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
        let (Some(Some(queue)), Some(budget)) = (self.queues.get_mut(index), BUDGETS.get(index)) else {
            return;
        };
        let memory = queue.memory().clone();
        queue.serve(&mut Budget::new(*budget), |chain| {
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
    use crate::virtio::testing::{Driver, SIZE};

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

    #[test]
    fn a_guest_that_gives_without_end_is_served_in_turns() {
        for index in [INFLATE, DEFLATE, REPORTING] {
            let mut driver = Driver::new();
            let mut balloon = Balloon::default();
            balloon.activate(0, (0..3).map(|queue| (queue == index).then(|| driver.queue())).collect());
            for _ in 0..SIZE {
                driver.add(&[], &[(0x20_0000, 4096)]);
            }
            for _ in 0..SIZE / BUDGETS[index] {
                balloon.serve(index);
                assert_eq!(driver.used().len(), usize::from(BUDGETS[index]));
                assert!(driver.was_notified(), "the rest is left for the next turn");
            }
            balloon.serve(index);
            assert!(driver.used().is_empty() && !driver.was_notified());
        }
    }
}
