//! The entropy device under a driver of any kind.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ravelin_fuzz::Input;
use ravelin_vmm::virtio::rng::Rng;
use ravelin_vmm_fuzz::Bench;

fuzz_target!(|bytes: &[u8]| {
    let mut bench = Bench::new(Box::<Rng>::default());
    bench.start(0);
    bench.play(&mut Input::new(bytes), |bench, input| {
        let memory = bench.memory.clone();
        bench.rings[0].play(&memory, input);
        bench.set(0x50, 0);
    });
    bench.finish();
});
