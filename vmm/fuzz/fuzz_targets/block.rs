//! The scratch disk under a driver of any kind.
#![no_main]

use std::os::unix::fs::MetadataExt;

use libfuzzer_sys::fuzz_target;
use ravelin_fuzz::Input;
use ravelin_vmm::virtio::block::Block;
use ravelin_vmm::virtio::block::scratch::Scratch;
use ravelin_vmm_fuzz::{Bench, DATA, Prompt, memory_file, put};

const DISK_BYTES: u64 = 64 << 10;

fuzz_target!(|bytes: &[u8]| {
    let file = memory_file(DISK_BYTES, 0);
    let storage = Prompt::new(Scratch::new(file.try_clone().unwrap()).unwrap());
    let mut bench = Bench::new(Box::new(Block::new("scratch", Box::new(storage)).unwrap()));
    bench.start(0);
    bench.play(&mut Input::new(bytes), request);
    bench.finish();
    assert_eq!(file.metadata().unwrap().size(), DISK_BYTES, "nothing is written behind the disk's end");
});

/// A request that looks like one.
fn request(bench: &mut Bench, input: &mut Input<'_>) {
    let kind = input.choose(&[0_u32, 1, 4, 8, 11, 13, 2]);
    let sector = match input.u8() {
        255 => input.u64(),
        near => u64::from(near),
    };
    let header = DATA;
    put(&bench.memory, header, &[kind.to_le_bytes(), [0; 4]].concat());
    put(&bench.memory, header + 8, &sector.to_le_bytes());
    let data = (DATA + 0x100, u32::from(input.u8()) * input.choose(&[512, 16, 1]));
    let memory = bench.memory.clone();
    if input.below(2) == 0 {
        bench.rings[0].add_plain(&memory, &[(header, 16), data], &[(DATA + 0x80, 1)]);
    } else {
        bench.rings[0].add_plain(&memory, &[(header, 16)], &[data, (DATA + 0x80, 1)]);
    }
    bench.set(0x50, 0);
    bench.turn();
}
