//! The control queue: how many queue pairs the driver uses (virtio 1.3 §5.1.6.5).

use crate::virtio::queue::{Budget, Chain, Verdict, Virtqueue};

const CLASS_MQ: u8 = 4;
const MQ_VQ_PAIRS_SET: u8 = 0;
const OK: u8 = 0;
const ERROR: u8 = 1;

/// Most commands per call.
const BUDGET: u16 = 16;

/// Answers commands; returns the number of pairs that the driver asked for last, 1 to `most`.
pub fn serve(queue: &mut Virtqueue, most: usize) -> Option<usize> {
    let mut pairs = None;
    queue.serve(&mut Budget::new(BUDGET), |chain| {
        let wanted = parse(chain, most);
        pairs = wanted.or(pairs);
        let written = chain.writable.write(0, &[if wanted.is_some() { OK } else { ERROR }]);
        Verdict::Used(u32::try_from(written).unwrap_or(0))
    });
    pairs
}

/// The number of pairs that a command asks for, if it is one that exists.
fn parse(chain: &Chain, most: usize) -> Option<usize> {
    let mut command = [0; 4];
    if chain.readable.read(0, &mut command) < command.len() || chain.writable.is_empty() {
        return None;
    }
    let [class, command, low, high] = command;
    let pairs = usize::from(u16::from_le_bytes([low, high]));
    (class == CLASS_MQ && command == MQ_VQ_PAIRS_SET && (1..=most).contains(&pairs)).then_some(pairs)
}
