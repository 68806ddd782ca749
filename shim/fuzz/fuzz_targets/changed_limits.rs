//! Limits of containers that are changed while they run: a list of `LinuxResources`.
#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use oci_spec::runtime::LinuxResources;
use ravelin_shim::sandbox::{Asked, ContainerLimits};

const VALUES: [&str; 8] = [
    r#"{"cpu": {"quota": 100000, "period": 100000, "shares": 1024}}"#,
    r#"{"memory": {"limit": 9223372036854775807}}"#,
    r#"{"memory": {"limit": 0, "swap": 0, "reservation": -1}}"#,
    r#"{"unified": {"memory.high": "max", "cpu.max": "1 1"}}"#,
    r#"{"hugepageLimits": [{"pageSize": "2MB", "limit": 0}]}"#,
    r#"{"pids": {"limit": -1}}"#,
    r#"{"devices": [{"allow": true}]}"#,
    "18446744073709551615",
];

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    ravelin_fuzz::json::mutate(data, size, max_size, seed, &VALUES)
});

fuzz_target!(|text: &[u8]| {
    let Ok(changes) = serde_json::from_slice::<Vec<LinuxResources>>(text) else { return };
    let mut limits = ContainerLimits::default();
    let mut sum = Asked::default();
    for change in &changes {
        limits = limits.changed_by(change).unwrap();
        // The same change again changes nothing.
        assert_eq!(limits.changed_by(change).unwrap(), limits);
        sum = sum.plus(limits.asked());
        assert!(sum.memory_bytes >= limits.asked().memory_bytes);
        // The agent reads what the shim writes.
        serde_json::from_slice::<LinuxResources>(&limits.to_json()).unwrap();
    }
});
