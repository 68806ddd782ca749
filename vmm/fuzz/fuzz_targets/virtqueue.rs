//! A queue's rings and descriptors, whatever is in them.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use ravelin_fuzz::Input;
use ravelin_vmm::event::EventFd;
use ravelin_vmm::virtio::interrupt::Interrupt;
use ravelin_vmm::virtio::queue::{
    Budget, Chain, MAX_DESCRIPTORS, Malformed, Progress, QueueSpec, Verdict, Virtqueue,
};
use ravelin_vmm_fuzz::{Rings, SIZE, address, fresh_memory, put};
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddress;

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let memory = fresh_memory();
    let mut rings = Rings::of(0);
    let spec = QueueSpec {
        size: SIZE,
        max_chain_bytes: input.choose(&[64, 4096, 1 << 20, usize::MAX]),
        signal_every: input.choose(&[1, 2, 64]),
        malformed: input.choose(&[Malformed::GiveBack, Malformed::Break]),
    };
    let mut queue = Queue::new(SIZE).unwrap();
    let size = input.choose(&[SIZE, 1, 2, 8]);
    queue.try_set_size(size).unwrap();
    let places = if input.below(4) == 0 {
        [address(&mut input), address(&mut input), address(&mut input)]
    } else {
        [rings.table(), rings.available_ring(), rings.used_ring()]
    };
    // What the registers refuse never gets to a queue.
    let [table, available, used] = places.map(GuestAddress);
    if queue.try_set_desc_table_address(table).is_err()
        || queue.try_set_avail_ring_address(available).is_err()
        || queue.try_set_used_ring_address(used).is_err()
    {
        return;
    }
    queue.set_event_idx(input.below(2) == 1);
    queue.set_ready(true);
    if !queue.is_valid(&memory) {
        return;
    }
    let interrupt = Arc::new(Interrupt::new().unwrap());
    let notification = Arc::new(EventFd::new().unwrap());
    let mut queue =
        Virtqueue::new(queue, spec, memory.clone(), Arc::clone(&interrupt), Arc::clone(&notification));
    let mut kept: Vec<Chain> = Vec::new();
    let mut broken = false;
    while !input.is_empty() {
        match input.u8() % 8 {
            0..=3 => rings.play(&memory, &mut input),
            4 => {
                let at = address(&mut input);
                let length = usize::from(input.u8());
                put(&memory, at, input.bytes(length));
            }
            5 => {
                if let Some(chain) = kept.pop() {
                    let room = u32::try_from(chain.writable.len()).unwrap_or(u32::MAX);
                    queue.give_back(chain.head, room.min(input.u32()));
                }
            }
            6 => queue.signal(),
            _ => {
                let budget = u16::from(input.u8());
                let mut served = 0;
                let progress = queue.serve(&mut Budget::new(budget), |chain| {
                    served += 1;
                    assert!(chain.head < size, "the head {} is outside of the queue", chain.head);
                    for part in [&chain.readable, &chain.writable] {
                        assert!(part.len() <= spec.max_chain_bytes);
                        assert!(part.pieces() <= MAX_DESCRIPTORS);
                    }
                    // The whole of it is memory: what is not would end the process here.
                    let mut copy = [0; 64];
                    let length = chain.readable.len();
                    chain.readable.read(length.saturating_sub(64), &mut copy);
                    chain.writable.write(chain.writable.len().saturating_sub(64), &copy);
                    match input.u8() % 6 {
                        0 | 1 => Verdict::Used(input.u32()),
                        2 => Verdict::LastUsed(0),
                        3 => {
                            kept.push(std::mem::take(chain));
                            Verdict::Kept
                        }
                        4 => Verdict::PutBack,
                        _ => Verdict::Broken,
                    }
                });
                assert!(served <= budget);
                assert!(!broken || served == 0, "a broken queue is out of use");
                broken |= progress == Progress::Broken;
                assert!(!broken || interrupt.is_reset_needed());
                // Chains that are kept for ever are no driver's.
                kept.truncate(64);
            }
        }
    }
});
