//! What a guest leaves in memory when it panics.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ravelin_vmm::machine::last_words;
use ravelin_vmm::machine::layout::{LAST_WORDS, LAST_WORDS_MAX};
use ravelin_vmm_fuzz::{fresh_memory, put};

fuzz_target!(|bytes: &[u8]| {
    let memory = fresh_memory();
    let mut words = vec![0; LAST_WORDS_MAX];
    let length = bytes.len().min(LAST_WORDS_MAX);
    words[..length].copy_from_slice(&bytes[..length]);
    put(&memory, LAST_WORDS, &words);
    let lines = last_words::read(&memory);
    assert!(lines.len() <= 80);
    for line in lines {
        assert!(line.chars().count() <= 200 && !line.contains(char::is_control), "{line:?}");
    }
});
