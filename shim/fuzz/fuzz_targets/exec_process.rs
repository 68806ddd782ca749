//! An exec's process, JSON of containerd's, as the guest gets it.
#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use oci_spec::runtime::Process;
use ravelin_shim::spec;

const VALUES: [&str; 8] = [
    r#"{"bounding": ["CAP_CHOWN", "CAP_NONE", "CHOWN", 7]}"#,
    r#"["CAP_KILL"]"#,
    r#"{"uid": 4294967295, "gid": 0, "additionalGids": [1]}"#,
    r#"[{"type": "RLIMIT_NOFILE", "hard": 1, "soft": 2}]"#,
    r#"{"height": 25, "width": 80}"#,
    r#"{"policy": "SCHED_FIFO", "priority": 99}"#,
    "\"/\"",
    "[\"sh\", \"-c\", \"\"]",
];

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    ravelin_fuzz::json::mutate(data, size, max_size, seed, &VALUES)
});

fuzz_target!(|text: &[u8]| {
    let Ok(bytes) = spec::exec_process(text) else { return };
    // The agent reads what the shim writes.
    serde_json::from_slice::<Process>(&bytes).unwrap();
    assert_eq!(spec::exec_process(&bytes).unwrap(), bytes);
});
