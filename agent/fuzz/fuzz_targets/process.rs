//! An exec's process: what of it libcontainer gets.
#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use oci_spec::runtime::{Capability, Process};
use ravelin_agent::container::fuzzing::complete_process;

const VALUES: [&str; 9] = [
    r#"{"bounding": ["CAP_CHOWN"], "effective": ["CAP_SYS_ADMIN"]}"#,
    r#"{"uid": 4294967295, "gid": 2147483648, "additionalGids": [4294967295]}"#,
    r#"[{"type": "RLIMIT_NOFILE", "hard": 1, "soft": 2}]"#,
    r#"{"height": 4294967295, "width": 80}"#,
    r#"{"policy": "SCHED_FIFO", "priority": 99, "flags": ["SCHED_FLAG_RESET_ON_FORK"]}"#,
    r#"{"class": "IOPRIO_CLASS_RT", "priority": 7}"#,
    r#"["HOME=", "A=b\u0000", "=", "x"]"#,
    "[]",
    "true",
];

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    ravelin_fuzz::json::mutate(data, size, max_size, seed, &VALUES)
});

fuzz_target!(|text: &[u8]| {
    let Ok(node) = serde_json::from_slice::<Process>(text) else { return };
    let asked = node.capabilities().as_ref().and_then(|sets| sets.effective().clone()).unwrap_or_default();
    for filtered in [false, true] {
        let Ok(process) = complete_process(node.clone(), filtered, true, Some(500)) else { return };
        let effective = process.capabilities().as_ref().unwrap().effective().clone().unwrap();
        let lent = filtered && !process.no_new_privileges().unwrap_or_default();
        for capability in &effective {
            assert!(asked.contains(capability) || (lent && *capability == Capability::SysAdmin));
        }
        let environment = process.env().clone().unwrap();
        assert!(environment.iter().any(|entry| entry.starts_with("HOME=")));
        assert!(environment.iter().all(|entry| entry.contains('=') && !entry.contains('\0')));
        assert!(process.selinux_label().is_none());
        assert!(
            process.apparmor_profile().as_ref().is_none_or(|name| !name.is_empty() && name.len() <= 2048)
        );
    }
});
