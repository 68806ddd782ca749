//! Registers of every kind of device, written and read in any order: what a device is told stays in order.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ravelin_fuzz::Input;
use ravelin_vmm::event::Mailbox;
use ravelin_vmm::virtio::Device;
use ravelin_vmm::virtio::balloon::Balloon;
use ravelin_vmm::virtio::block::Block;
use ravelin_vmm::virtio::block::extents::Extents;
use ravelin_vmm::virtio::fs::Fs;
use ravelin_vmm::virtio::rng::Rng;
use ravelin_vmm::virtio::vsock::Vsock;
use ravelin_vmm_fuzz::{Bench, any_register, any_value};

const STATUS: u64 = 0x70;
const KNOWN_STATUS: u32 = 1 | 2 | 4 | 8 | 64 | 128;

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let device: Box<dyn Device> = match input.u8() % 5 {
        0 => Box::<Rng>::default(),
        1 => Box::new(Balloon::new(16)),
        2 => Box::new(Block::new("layers", Box::new(Extents::new(true))).unwrap()),
        3 => Box::new(Vsock::new(Mailbox::new().unwrap(), Box::new(|_| {}))),
        _ => Box::new(Fs::new(Mailbox::new().unwrap())),
    };
    let mut bench = Bench::new(device);
    let identity = [0, 4, 8, 12].map(|register| bench.get(register));
    while !input.is_empty() {
        let (register, value) = (any_register(&mut input), any_value(&mut input));
        let before = bench.get(STATUS);
        bench.set(register, value);
        let after = bench.get(STATUS);
        assert_eq!(after & !KNOWN_STATUS, 0);
        // Only a reset takes bits away, and no other register changes the status.
        assert!(after & before == before || (register == STATUS && value == 0), "{before:#x} to {after:#x}");
        assert!(register == STATUS || after == before || after & 64 != 0);
        // No device starts without an agreement on features.
        assert!(after & 4 == 0 || after & 8 != 0);
        if input.below(4) == 0 {
            bench.turn();
        }
    }
    assert_eq!(identity, [0, 4, 8, 12].map(|register| bench.get(register)));
    bench.finish();
});
