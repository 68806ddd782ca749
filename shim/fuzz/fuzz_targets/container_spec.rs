//! A container's OCI spec from containerd's bundle: what is read in it, how it is judged, and what the guest gets of it.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use oci_spec::runtime::Spec;
use ravelin_fuzz::Scratch;
use ravelin_policy::{
    ContainerView, PodIdentity, PolicyConfig, Roots, check_container, classify, missing_root,
};
use ravelin_shim::sandbox::ContainerLimits;
use ravelin_shim::spec;

static SCRATCH: LazyLock<Scratch> = LazyLock::new(|| Scratch::new("container-spec"));

const VALUES: [&str; 16] = [
    "\"container\"",
    "\"sandbox\"",
    r#"{"type": "network", "path": "/var/run/netns/x"}"#,
    r#"{"type": "pid", "path": "/proc/1/ns/pid"}"#,
    r#"{"destination": "/x", "type": "bind", "source": "/var/lib/kubelet/pods/u/volumes/kubernetes.io~secret/s"}"#,
    r#"{"destination": "/x", "source": "/etc", "options": ["rbind"]}"#,
    r#"{"prestart": [{"path": "/bin/evil"}]}"#,
    r#"[{"path": "/dev/sda", "type": "b", "major": 8, "minor": 0}]"#,
    r#"{"bounding": ["CAP_CHOWN", "CAP_SYS_ADMIN", "CAP_NONE"]}"#,
    r#"{"memory": {"limit": 1048576, "swap": -1}, "cpu": {"quota": -1, "period": 0, "shares": 2}}"#,
    r#"[{"containerID": 0, "hostID": 0, "size": 1}]"#,
    r#"{"defaultAction": "SCMP_ACT_ERRNO"}"#,
    "[\"bind\", \"ro\"]",
    "\"/var/lib/kubelet/pods/u/volumes/kubernetes.io~empty-dir/e\"",
    "\"/run/containerd/io.containerd.grpc.v1.cri/sandboxes/s/hosts\"",
    "4294967295",
];

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    ravelin_fuzz::json::mutate(data, size, max_size, seed, &VALUES)
});

fuzz_target!(|text: &[u8]| {
    drop(SCRATCH.write("config.json", text));
    let Ok((mut spec, bounding)) = spec::load_container(SCRATCH.path()) else { return };
    let _ = (spec::kind(&spec), spec::pid_namespace(&spec), spec::devices(&spec));
    let pod = PodIdentity { sandbox_id: "s", pod_uid: "u", host_ipc: false };
    let (roots, policy) = (Roots::default(), PolicyConfig::default());
    let mut view = ContainerView::from_spec(&spec, &bounding);
    view.unsupported_volumes.extend(
        spec::host_mounts(&spec)
            .filter_map(|(_, source)| classify(source, pod, &roots).violation(source, None, &policy)),
    );
    for (_, source) in spec::host_mounts(&spec) {
        let _ = missing_root(source, pod, &roots);
    }
    if let Err(refusal) = check_container(&view, &policy) {
        let _ = (refusal.to_string(), refusal.way_around());
    }
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().clone()).unwrap_or_default();
    let limits = ContainerLimits::default().changed_by(&resources).unwrap();
    let _ = limits.asked();

    spec::strip_host(&mut spec);
    let bytes = spec::encode(&spec).unwrap();
    // The agent reads what the shim writes, and nothing in it is the host's.
    let guest: Spec = serde_json::from_slice(&bytes).unwrap();
    assert!(guest.hooks().is_none());
    assert_eq!(guest.root().as_ref().unwrap().path().as_os_str(), "rootfs");
    if let Some(linux) = guest.linux() {
        assert!(linux.cgroups_path().is_none() && linux.devices().is_none() && linux.intel_rdt().is_none());
        assert!(linux.namespaces().iter().flatten().all(|namespace| namespace.path().is_none()));
    }
    if let Some(process) = guest.process() {
        assert!(process.selinux_label().is_none());
    }
});
