//! A kernel image, an initramfs and a command line of any kind, loaded into guest memory.
#![no_main]

use std::io::Write;

use libfuzzer_sys::fuzz_target;
use ravelin_fuzz::Input;
use ravelin_vmm::machine::kernel;
use ravelin_vmm_fuzz::{fresh_memory, memory_file};

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let memory = fresh_memory();
    let initramfs = memory_file(
        match input.u8() {
            255 => input.u64() >> 1,
            254 => input.u32().into(),
            pages => u64::from(pages) * 1000,
        },
        0,
    );
    let length = usize::from(input.u8());
    let command_line = String::from_utf8_lossy(input.bytes(length)).into_owned();
    let mut image = memory_file(0, 0);
    image.write_all(input.rest()).unwrap();
    // Where it is entered is the image's business: the guest's kernel can do what it likes anyway.
    let _ = kernel::load(&memory, &mut image, &initramfs, &command_line);
});
