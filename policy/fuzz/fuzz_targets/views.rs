//! OCI specs as containerd writes them: what the policy sees in them, and what size their annotations ask for.
#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use oci_spec::runtime::Spec;
use ravelin_policy::{
    ContainerView, Mode, PolicyConfig, SandboxResources, SandboxView, SizingConfig, SizingMode, addable,
    check_container, check_sandbox, size,
};
use serde_json::Value;

const VALUES: [&str; 14] = [
    "\"io.kubernetes.cri.sandbox-cpu-quota\"",
    "\"io.kubernetes.cri.sandbox-memory\"",
    "\"9223372036854775807\"",
    "\"-1\"",
    "\"100000\"",
    r#"[{"type": "pid"}, {"type": "ipc"}, {"type": "network"}]"#,
    r#"{"type": "network", "path": "/var/run/netns/x"}"#,
    r#"[{"destination": "/sys", "type": "sysfs", "options": ["rw"]}]"#,
    r#"["ro"]"#,
    r#"[{"allow": true, "access": "rwm"}]"#,
    r#"{"allow": true, "type": "a", "major": -1, "minor": -1}"#,
    r#"{"bounding": ["CAP_CHOWN", "CAP_SYS_ADMIN"]}"#,
    "\"CAP_CAP_CHOWN\"",
    "\"CAP_NET_RAW\"",
];

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    ravelin_fuzz::json::mutate(data, size, max_size, seed, &VALUES)
});

fuzz_target!(|text: &[u8]| {
    let Ok(json) = serde_json::from_slice::<Value>(text) else { return };
    let bounding = json["process"]["capabilities"]["bounding"].as_array();
    let bounding: Vec<String> =
        bounding.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
    let Ok(spec) = serde_json::from_value::<Spec>(json) else { return };
    let strict = PolicyConfig::default();
    let lax = PolicyConfig { mode: Mode::Guest, ..PolicyConfig::default() };
    let sandbox = SandboxView::from_spec(&spec);
    let passes = check_sandbox(&sandbox, &strict);
    let plain = !(sandbox.host_network || sandbox.host_pid || sandbox.host_ipc || sandbox.privileged);
    assert_eq!(passes.is_ok(), plain);
    check_sandbox(&sandbox, &lax).unwrap();
    let container = ContainerView::from_spec(&spec, &bounding);
    if check_container(&container, &strict).is_ok() {
        assert!(!container.privileged && container.added_capabilities.is_empty());
        let added = |name: &String| !addable(name.strip_prefix("CAP_").unwrap_or(name));
        assert!(!bounding.iter().any(added), "{bounding:?} passed");
    }
    check_container(&container, &lax).unwrap();

    let annotations = spec.annotations().clone().unwrap_or_default();
    let resources = SandboxResources::from_annotations(|key| annotations.get(key).map(String::as_str));
    let requests = resources.requests();
    for mode in [SizingMode::Fargate, SizingMode::Exact] {
        let config = SizingConfig { mode, ..SizingConfig::default() };
        if let Ok(size) = size(requests, &config) {
            assert!(u64::from(size.cpu_millis) >= requests.cpu_millis);
            assert!(u64::from(size.memory_mib) << 20 >= requests.memory_bytes);
        }
    }
});
