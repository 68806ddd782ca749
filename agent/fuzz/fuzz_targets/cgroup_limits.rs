//! A container's limits, at its creation or later: what of them the guest's cgroup gets.
#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use oci_spec::runtime::LinuxResources;
use ravelin_agent::container::limit;

const VALUES: [&str; 10] = [
    r#"{"memory.high": "max", "io.max": "8:0 rbps=1", "cpuset.cpus": "0"}"#,
    r#"{"../memory.max": "1"}"#,
    r#"{"limit": 1048576, "swap": 1048576}"#,
    r#"{"limit": -1, "swap": -1}"#,
    r#"{"weight": 65535, "leafWeight": 1}"#,
    r#"[{"major": 8, "minor": 0, "rate": 5}]"#,
    r#"[{"pageSize": "2MB", "limit": 0}, {"pageSize": "../1GB", "limit": 1}]"#,
    r#"{"shares": 18446744073709551615, "quota": -9223372036854775808, "period": 0}"#,
    "65535",
    "10",
];

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    ravelin_fuzz::json::mutate(data, size, max_size, seed, &VALUES)
});

fuzz_target!(|text: &[u8]| {
    let Ok(asked) = serde_json::from_slice::<LinuxResources>(text) else { return };
    for has_all in [true, false] {
        let known = |file: &str| has_all || matches!(file, "memory.high" | "io.weight");
        let Ok(limits) = limit(&asked, &known) else { continue };
        assert!(limits.devices().is_none() && limits.block_io().is_none() && limits.rdma().is_none());
        // Nothing is written outside of the container's cgroup, and nothing that names the node's devices.
        for (file, value) in limits.unified().iter().flatten() {
            assert!(!file.contains('/') && !file.starts_with("cpuset."), "{file}");
            assert!(!(file.starts_with("io.") && value.contains(':')), "{file}={value}");
        }
        let cpu = limits.cpu().clone().unwrap_or_default();
        assert!(cpu.cpus().is_none() && cpu.mems().is_none());
    }
});
