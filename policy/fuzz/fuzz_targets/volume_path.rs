//! Host paths of bind mounts: lines of sandbox's id, pod's UID and path.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ravelin_policy::{PodIdentity, Roots, Unsupported, VolumeKind, classify, missing_root};

fuzz_target!(|text: &str| {
    let mut lines = text.splitn(4, '\n');
    let mut line = || lines.next().unwrap_or_default();
    let (sandbox_id, pod_uid, host_ipc, path) = (line(), line(), line() == "ipc", line());
    let pod = PodIdentity { sandbox_id, pod_uid, host_ipc };
    let roots = Roots::default();
    let kind = classify(path, pod, &roots);
    if let Some((key, root)) = missing_root(path, pod, &roots) {
        assert!(path.starts_with(root) && matches!(key, "kubelet" | "containerd"));
        assert_eq!(kind, VolumeKind::Unsupported(Unsupported::HostPath));
    }
    if matches!(kind, VolumeKind::Unsupported(_)) {
        return;
    }
    // What the shim may open lies in a directory of kubelet or containerd and leads nowhere else.
    assert!(!path.contains('\0') && !path.split('/').any(|part| matches!(part, "." | "..")));
    assert!(!path.contains("//"));
    let below =
        roots.kubelet.iter().chain(&roots.containerd).any(|root| path.starts_with(&format!("{root}/")));
    assert!(below || (host_ipc && path == "/dev/shm"), "{path:?} is {kind:?}");
    // And what holds a pod's secrets is this pod's.
    if let VolumeKind::Pushed { .. }
    | VolumeKind::EmptyDir { .. }
    | VolumeKind::SubPath { .. }
    | VolumeKind::File { .. }
    | VolumeKind::Image { .. } = kind
    {
        let own = |id: &str| !id.is_empty() && path.split('/').any(|part| part == id);
        assert!(own(sandbox_id) || own(pod_uid), "{path:?} is {kind:?} of {pod:?}");
    }
});
