//! A disk of extents under a driver of any kind, while the shim adds and removes files.
#![no_main]

use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use libfuzzer_sys::fuzz_target;
use ravelin_fuzz::Input;
use ravelin_vmm::virtio::block::Block;
use ravelin_vmm::virtio::block::extents::Extents;
use ravelin_vmm_fuzz::{Bench, DATA, Prompt, contents, memory_file, put};

const FILE_BYTES: u64 = 8192;

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let read_only = input.below(2) == 0;
    let extents = Extents::new(read_only);
    let protected = memory_file(FILE_BYTES, 0xaa);
    let shared = memory_file(FILE_BYTES, 0xbb);
    let storage = Box::new(Prompt::new(extents.clone()));
    let mut bench = Bench::new(Box::new(Block::new("volumes", storage).unwrap()));
    bench.start(0);
    let told = Arc::new(AtomicUsize::new(0));
    let mut removed = 0;
    bench.play(&mut input, |bench, input| match input.u8() % 4 {
        0 => {
            let offset = place(input);
            let length = u64::from(input.u8() % 4) * 4096;
            let writable = input.below(2) == 0;
            let file = if writable { &shared } else { &protected };
            let added = extents.add(offset, length, file.try_clone().unwrap(), writable);
            assert!(!(read_only && writable && added.is_ok()));
        }
        1 => {
            let told = Arc::clone(&told);
            let closed = move || {
                told.fetch_add(1, Ordering::SeqCst);
            };
            removed += usize::from(extents.remove(place(input), closed).is_ok());
        }
        _ => request(bench, input),
    });
    bench.finish();
    assert_eq!(told.load(Ordering::SeqCst), removed, "whoever removes an extent is told once");
    assert!(contents(&protected).iter().all(|byte| *byte == 0xaa), "a read-only file was written to");
    // A file grows only where its extent is longer.
    assert!(shared.metadata().unwrap().size() <= 3 * 4096);
});

fn place(input: &mut Input<'_>) -> u64 {
    match input.u8() {
        255 => input.u64(),
        254 => (8 << 40) - u64::from(input.u8()) * 4096,
        near => u64::from(near % 8) * 4096,
    }
}

/// A request that looks like one.
fn request(bench: &mut Bench, input: &mut Input<'_>) {
    let kind = input.choose(&[0_u32, 1, 4, 11, 13]);
    let sector = place(input) / 512 + u64::from(input.u8() % 8);
    let header = DATA;
    put(&bench.memory, header, &[kind.to_le_bytes(), [0; 4]].concat());
    put(&bench.memory, header + 8, &sector.to_le_bytes());
    // Discards and zeroes name their ranges in the data.
    put(&bench.memory, DATA + 0x100, &sector.to_le_bytes());
    put(&bench.memory, DATA + 0x108, &[input.u8() % 32, 0, 0, 0, input.u8() % 2, 0, 0, 0]);
    let data = (DATA + 0x100, u32::from(input.u8() % 32) * input.choose(&[512, 16]));
    let memory = bench.memory.clone();
    if kind == 0 {
        bench.rings[0].add_plain(&memory, &[(header, 16)], &[data, (DATA + 0x80, 1)]);
    } else {
        bench.rings[0].add_plain(&memory, &[(header, 16), data], &[(DATA + 0x80, 1)]);
    }
    bench.set(0x50, 0);
    bench.turn();
}
