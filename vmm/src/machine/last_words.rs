//! The kernel messages of a guest that panicked, without a console: the guest's `ramoops` driver copies them at its end
//! into a piece of memory. It is copied once before it is looked at: other processors of the guest may still run.

use vm_memory::{Bytes, GuestAddress};

use super::layout::{LAST_WORDS, LAST_WORDS_MAX};
use super::memory::GuestMemory;

/// `PERSISTENT_RAM_SIG` of Linux's `fs/pstore/ram_core.c`.
const SIGNATURE: u32 = 0x4347_4244;
/// Signature, position of the next byte and length, each of four bytes.
const HEADER: usize = 12;
/// Lines that are passed on, from the end: an oops with its registers and its trace, and what led to it.
const LINES: usize = 80;
/// Longest line that is passed on whole, in characters.
const LINE: usize = 200;

/// What the guest's kernel is told to have it write them.
pub(super) fn cmdline() -> String {
    // One record as large as the memory, for panics alone; in memory that is cached like any other.
    format!(
        "ramoops.mem_address={LAST_WORDS:#x} ramoops.mem_size={LAST_WORDS_MAX:#x} ramoops.record_size={LAST_WORDS_MAX:#x} \
         ramoops.console_size=0 ramoops.ftrace_size=0 ramoops.pmsg_size=0 ramoops.max_reason=1 ramoops.mem_type=2"
    )
}

/// The last lines of the guest's kernel; none when it left none. The guest decides what they say.
#[must_use]
pub fn read(memory: &GuestMemory) -> Vec<String> {
    let mut bytes = vec![0; LAST_WORDS_MAX];
    if memory.read_slice(&mut bytes, GuestAddress(LAST_WORDS)).is_err() {
        return Vec::new();
    }
    let word = |at: usize| {
        bytes.get(at..at + 4).and_then(|word| word.try_into().ok()).map_or(0, u32::from_le_bytes) as usize
    };
    if word(0) != SIGNATURE as usize {
        return Vec::new();
    }
    // The memory is written once, from its beginning: no more than the length matters.
    let text = bytes.get(HEADER..).unwrap_or_default();
    let text = String::from_utf8_lossy(text.get(..word(8)).unwrap_or(text)).into_owned();
    let mut lines: Vec<String> = text.lines().rev().take(LINES).map(shown).collect();
    lines.reverse();
    lines
}

/// A line without its `<level>` and without control characters.
fn shown(line: &str) -> String {
    let line = line.strip_prefix('<').and_then(|rest| rest.split_once('>')).map_or(line, |(_, text)| text);
    line.chars().filter(|c| !c.is_control()).take(LINE).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::memory;

    fn with(signature: u32, length: u32, text: &[u8]) -> GuestMemory {
        let memory = memory::allocate(64).unwrap();
        memory.write_obj(signature, GuestAddress(LAST_WORDS)).unwrap();
        memory.write_obj(length, GuestAddress(LAST_WORDS + 8)).unwrap();
        memory.write_slice(text, GuestAddress(LAST_WORDS + HEADER as u64)).unwrap();
        memory
    }

    #[test]
    fn the_lines_of_a_panic_are_read_without_their_levels() {
        let text = b"====1.2-D\nPanic#1 Part1\n<4>[    0.5] ravelin-agent: oh\x1b[2J\n<0>[    0.6] Kernel panic - not syncing: x\n";
        let lines = read(&with(SIGNATURE, text.len() as u32, text));
        let expected = [
            "====1.2-D",
            "Panic#1 Part1",
            "[    0.5] ravelin-agent: oh[2J",
            "[    0.6] Kernel panic - not syncing: x",
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn a_guest_that_left_nothing_has_no_lines() {
        assert!(read(&memory::allocate(64).unwrap()).is_empty());
        assert!(read(&with(1, 4, b"text")).is_empty());
    }

    #[test]
    fn whatever_a_guest_writes_is_bounded() {
        let endless = vec![b'x'; LAST_WORDS_MAX - HEADER];
        let lines = read(&with(SIGNATURE, u32::MAX, &endless));
        assert_eq!(lines.iter().map(String::len).collect::<Vec<_>>(), [LINE]);
        let many = b"\xff<\n".repeat((LAST_WORDS_MAX - HEADER) / 3);
        assert_eq!(read(&with(SIGNATURE, u32::MAX, &many)).len(), LINES);
    }
}
