//! The network device under a driver of any kind, with frames of any kind from outside.
#![no_main]

use std::os::unix::net::UnixDatagram;

use libfuzzer_sys::fuzz_target;
use ravelin_fuzz::Input;
use ravelin_vmm::virtio::net::{MAX_FRAME_BYTES, Net};
use ravelin_vmm_fuzz::{Bench, DATA, put};

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let pairs = input.choose(&[1, 2, 4]);
    let (near, far): (Vec<_>, Vec<_>) = (0..pairs).map(|_| wire()).unzip();
    let mut bench = Bench::new(Box::new(Net::on_sockets(near, [2, 0, 0, 0, 0, 1], 1500)));
    bench.start(0);
    bench.play(&mut input, |bench, input| match input.u8() % 4 {
        0 => {
            let frame = vec![input.u8(); usize::from(input.u16()) + 1];
            let _ = far[input.below(pairs)].send(&frame);
        }
        1 => take(&far[input.below(pairs)]),
        // Buffers to be received into.
        2 => {
            let memory = bench.memory.clone();
            let queue = input.below(bench.rings.len());
            let length = u32::from(input.u16());
            bench.rings[queue].add_plain(&memory, &[], &[(DATA, 12), (DATA + 0x1000, length)]);
        }
        // A command.
        _ => {
            let command = [4, 0, input.u8() % 8, 0];
            put(&bench.memory, DATA, &command);
            let memory = bench.memory.clone();
            let queue = bench.rings.len() - 1;
            bench.rings[queue].add_plain(&memory, &[(DATA, 4)], &[(DATA + 16, 1)]);
            bench.set(0x50, u32::try_from(queue).unwrap());
            bench.turn();
        }
    });
    bench.finish();
    far.iter().for_each(take);
});

/// A datagram socket keeps frames apart like a tap does.
fn wire() -> (UnixDatagram, UnixDatagram) {
    let (near, far) = UnixDatagram::pair().unwrap();
    near.set_nonblocking(true).unwrap();
    far.set_nonblocking(true).unwrap();
    (near, far)
}

/// Receives what the guest has sent.
fn take(far: &UnixDatagram) {
    let mut frame = vec![0; MAX_FRAME_BYTES + 1];
    while let Ok(length) = far.recv(&mut frame) {
        assert!((13..=MAX_FRAME_BYTES).contains(&length), "a frame of {length} bytes came out");
    }
}
