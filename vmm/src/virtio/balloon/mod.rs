//! The memory balloon (virtio 1.3 §5.5): the guest reports memory that it does not use, and the host takes it back.
//!
//! With free page reporting the guest does so by itself all the time; memory that it touches again comes back,
//! zeroed, with the next page fault. Nobody asks it to inflate the balloon, but if it does, those pages go too.

use vm_memory::GuestAddress;

use super::Device;
use super::queue::{Chain, QueueBroken, Virtqueue};
use crate::machine::memory::{self, GuestMemory};

const ID: u32 = 5;
/// Inflate, deflate, free page reporting.
const QUEUES: [u16; 3] = [128, 128, 128];
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

/// The balloon device.
#[derive(Debug, Default)]
pub struct Balloon {
    queues: Vec<Option<Virtqueue>>,
    chain: Chain,
    /// `num_pages` (wanted: none) and `actual` (told by the guest, believed by nobody).
    config: [u8; 8],
}

impl Balloon {
    fn serve(&mut self, index: usize) -> Result<(), QueueBroken> {
        let Some(Some(queue)) = self.queues.get_mut(index) else { return Ok(()) };
        loop {
            queue.pause_notifications();
            while queue.pop(&mut self.chain)? {
                let memory = queue.memory();
                match index {
                    INFLATE => inflate(memory, &self.chain),
                    REPORTING => self.chain.writable.discard(),
                    // Deflated pages come back by themselves when they are touched.
                    _ => {}
                }
                queue.push_used(self.chain.head, 0)?;
            }
            if !queue.resume_notifications() {
                break;
            }
        }
        queue.signal();
        Ok(())
    }
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
    fn name(&self) -> &'static str {
        "balloon"
    }

    fn id(&self) -> u32 {
        ID
    }

    fn features(&self) -> u64 {
        F_DEFLATE_ON_OOM | F_PAGE_REPORTING
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUES
    }

    fn max_chain_bytes(&self, queue: usize) -> usize {
        // A report names the memory itself and may cover a good part of it.
        if queue == REPORTING { usize::MAX } else { MAX_PFNS * 4 }
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) {
        // Only `actual` is the driver's to write.
        if offset == 4
            && let (Some(actual), Ok(data)) = (self.config.get_mut(4..8), <[u8; 4]>::try_from(data))
        {
            actual.copy_from_slice(&data);
        }
    }

    fn activate(&mut self, _features: u64, queues: Vec<Option<Virtqueue>>) {
        self.queues = queues;
    }

    fn reset(&mut self) {
        self.queues.clear();
        self.chain = Chain::default();
        self.config = [0; 8];
    }

    fn notified(&mut self, queue: usize) {
        if matches!(queue, INFLATE | DEFLATE | REPORTING)
            && self.serve(queue).is_err()
            && let Some(broken) = self.queues.get_mut(queue)
        {
            *broken = None;
        }
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

    #[test]
    fn the_driver_may_write_only_how_much_it_gave() {
        let mut balloon = Balloon::default();
        balloon.write_config(0, &[1, 2, 3, 4]);
        balloon.write_config(6, &[1, 2, 3, 4]);
        balloon.write_config(usize::MAX, &[1]);
        assert_eq!(balloon.config(), [0; 8]);
        balloon.write_config(4, &[1, 2, 3, 4]);
        assert_eq!(balloon.config(), [0, 0, 0, 0, 1, 2, 3, 4]);
    }
}
