//! State files of pods, which a shim leaves for whoever cleans up after it.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use ravelin_fuzz::Scratch;
use ravelin_shim::state::{StateDir, is_valid_id};

static SCRATCH: LazyLock<Scratch> = LazyLock::new(|| {
    let scratch = Scratch::new("state");
    std::fs::create_dir(scratch.path().join("abc")).unwrap();
    scratch
});

fuzz_target!(|text: &[u8]| {
    if let Ok(id) = std::str::from_utf8(text)
        && is_valid_id(id)
    {
        assert!(!id.contains(['/', '\0']) && !matches!(id, "." | ".."));
    }
    let directory = StateDir::new(SCRATCH.path(), "abc");
    drop(SCRATCH.write("abc/state.json", text));
    let Ok(Some(state)) = directory.load() else { return };
    // Whether such a process is there is asked before it is killed.
    let _ = state.shim.is_some_and(|process| process.is_there());
    let others = StateDir::new(SCRATCH.path(), "other").others().unwrap();
    assert!(others.iter().any(|(_, other)| *other == state));
    directory.save(&state).unwrap();
    assert_eq!(directory.load().unwrap(), Some(state));
});
