//! A sandbox as containerd's sandbox API asks for it: CRI's description of a pod.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use prost::Message;
use ravelin_shim::config::Config;
use ravelin_shim::cri::PodSandboxConfig;
use ravelin_shim::sandbox::Request;
use ravelin_shim::sandbox::plan::Plan;

static CONFIG: LazyLock<Config> = LazyLock::new(Config::default);

fuzz_target!(|bytes: &[u8]| {
    let Ok(config) = PodSandboxConfig::decode(bytes) else { return };
    let netns = if bytes.len().is_multiple_of(2) { "/var/run/netns/x" } else { "" };
    let Ok(request) = Request::from_cri("abc", netns, &config) else { return };
    let (host_network, cgroup) = (request.view.host_network, request.cgroups_path.clone());
    match Plan::new(request, &CONFIG) {
        Ok(plan) => {
            assert!(!host_network && plan.hostname.len() <= 64);
            assert!(plan.size.vcpus <= 32 && plan.size.memory_mib + plan.headroom_mib <= 128 << 10);
            // The pod's cgroup is one of its own.
            assert!(cgroup.is_none_or(|path| path.ends_with("abc")));
            let _ = plan.limits(&CONFIG);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
