//! A sandbox as containerd's task API asks for it: the OCI spec of a pause container with CRI's annotations.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use ravelin_fuzz::Scratch;
use ravelin_shim::config::Config;
use ravelin_shim::sandbox::Request;
use ravelin_shim::sandbox::plan::Plan;
use ravelin_shim::spec;

static CONFIG: LazyLock<Config> = LazyLock::new(Config::default);
static SCRATCH: LazyLock<Scratch> = LazyLock::new(|| Scratch::new("sandbox-spec"));

const VALUES: [&str; 14] = [
    "\"sandbox\"",
    "\"100000\"",
    "\"-1\"",
    "\"9223372036854775807\"",
    "\"137438953472\"",
    "\"kubepods-pod1.slice:cri-containerd:abc\"",
    "\"a-b.slice:x:\"",
    "\":::\"",
    "\"/kubepods/../abc\"",
    r#"[{"type": "pid"}, {"type": "ipc"}, {"type": "network", "path": "/var/run/netns/x"}]"#,
    r#"{"type": "network", "path": ""}"#,
    r#"{"net.ipv4.ip_forward": "1"}"#,
    r#"[{"destination": "/sys", "type": "sysfs", "options": ["ro"]}]"#,
    "\"0123456789012345678901234567890123456789012345678901234567890123456789\"",
];

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    ravelin_fuzz::json::mutate(data, size, max_size, seed, &VALUES)
});

fuzz_target!(|text: &[u8]| {
    drop(SCRATCH.write("config.json", text));
    let Ok(spec) = spec::load(SCRATCH.path()) else { return };
    let _ = spec::kind(&spec);
    let request = Request::from_spec("abc", &spec);
    match Plan::new(request, &CONFIG) {
        Ok(plan) => {
            assert!(plan.hostname.len() <= 64 && !plan.netns.as_os_str().is_empty());
            assert!(plan.size.vcpus <= 32 && plan.size.memory_mib + plan.headroom_mib <= 128 << 10);
            let limits = plan.limits(&CONFIG);
            assert!(limits.memory_bytes.unwrap() >= u64::from(plan.size.memory_mib) << 20);
            assert!(limits.cpu_quota_us.is_none_or(|quota| quota >= 1000));
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
