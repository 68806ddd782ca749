//! The parser of block requests, against what the specification says of each.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ravelin_fuzz::Input;
use ravelin_vmm::virtio::block::request::{Kind, Request, SECTOR, ranges};
use ravelin_vmm::virtio::buffers::Buffers;
use ravelin_vmm::virtio::queue::Chain;
use ravelin_vmm_fuzz::{DATA, fresh_memory, put};
use vm_memory::GuestAddress;

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let memory = fresh_memory();
    let capacity = u64::from(input.u16()) * SECTOR;
    let most = usize::from(input.u16());
    let mut chain = Chain::default();
    let mut at = DATA;
    for part in [&mut chain.readable, &mut chain.writable] {
        for _ in 0..input.below(6) {
            let length = input.u16() % 4096;
            assert!(part.push(&memory, GuestAddress(at), length.into()));
            at += u64::from(length);
        }
    }
    put(&memory, DATA, input.rest());
    let mut data = Buffers::new();
    let Some(request) = Request::parse(&chain, capacity, most, &mut data) else {
        assert!(chain.writable.is_empty(), "a chain with room for a status has an answer");
        return;
    };
    assert_eq!(request.status_offset + 1, chain.writable.len());
    let length = data.len() as u64;
    match request.kind {
        Kind::Read { offset } | Kind::Write { offset } => {
            assert!(offset.is_multiple_of(SECTOR) && length.is_multiple_of(SECTOR) && length > 0);
            assert!(offset + length <= capacity);
            assert!(data.len() <= most);
        }
        Kind::Identify => assert!(data.len() >= 20),
        Kind::Discard | Kind::WriteZeroes => {
            for range in ranges(&data, capacity, 16, 1 << 21).unwrap_or_default() {
                assert!(range.length > 0 && range.offset + range.length <= capacity);
            }
        }
        Kind::Flush | Kind::Invalid | Kind::Unknown => {}
    }
});
