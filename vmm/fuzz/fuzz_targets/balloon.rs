//! The balloon under a driver of any kind.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ravelin_fuzz::Input;
use ravelin_vmm::virtio::balloon::{self, Balloon};
use ravelin_vmm_fuzz::{Bench, DATA, put};

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let mut bench = Bench::new(Box::new(Balloon::new(input.u32())));
    bench.start(0);
    bench.play(&mut input, |bench, input| {
        match input.u8() % 4 {
            0 => balloon::ask(&bench.window, input.u32()),
            // Numbers of pages: of any, and of those in the arena.
            kind => {
                let queue = input.below(3);
                let pages: Vec<u8> = (0..input.u8())
                    .flat_map(|_| {
                        let page = if kind == 1 { input.u32() } else { 0x100 + u32::from(input.u8()) };
                        page.to_le_bytes()
                    })
                    .collect();
                put(&bench.memory, DATA, &pages);
                let memory = bench.memory.clone();
                let readable = [(DATA, u32::try_from(pages.len()).unwrap())];
                bench.rings[queue].add_plain(&memory, &readable, &[]);
                bench.set(0x50, u32::try_from(queue).unwrap());
            }
        }
        assert!(balloon::given(&bench.window) <= u32::MAX / 256);
    });
    bench.finish();
});
