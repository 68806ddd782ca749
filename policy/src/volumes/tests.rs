use super::*;

const UID: &str = "0c6e0b52-5f2e-4c3b-8f5e-6a1d4b1f7c11";
const ID: &str = "5c1f3e";

fn kind(path: &str) -> VolumeKind {
    let pod = PodIdentity { sandbox_id: ID, pod_uid: UID, host_ipc: false };
    classify(path, pod, &Roots::default())
}

fn pushed(kind: PushedKind, name: &str) -> VolumeKind {
    VolumeKind::Pushed { kind, name: name.to_owned() }
}

fn image(image: &str, sub_path: &str) -> VolumeKind {
    VolumeKind::Image { image: image.to_owned(), sub_path: sub_path.to_owned() }
}

fn file(plugin: &str, name: &str) -> VolumeKind {
    VolumeKind::File { plugin: plugin.to_owned(), name: name.to_owned() }
}

#[test]
fn paths_of_the_kubelet_are_told_apart() {
    let sub = VolumeKind::SubPath { volume: "conf".to_owned(), container: "web".to_owned(), index: 3 };
    for (path, expected) in [
        ("volumes/kubernetes.io~configmap/conf", pushed(PushedKind::ConfigMap, "conf")),
        ("volumes/kubernetes.io~secret/tls", pushed(PushedKind::Secret, "tls")),
        (
            "volumes/kubernetes.io~projected/kube-api-access-x",
            pushed(PushedKind::Projected, "kube-api-access-x"),
        ),
        ("volumes/kubernetes.io~downward-api/info", pushed(PushedKind::DownwardApi, "info")),
        ("volumes/kubernetes.io~empty-dir/tmp", VolumeKind::EmptyDir { name: "tmp".to_owned() }),
        ("volumes/kubernetes.io~nfs/share", file("kubernetes.io/nfs", "share")),
        ("volumes/kubernetes.io~csi/pvc-1/mount", file(CSI_PLUGIN, "pvc-1")),
        ("volumes/kubernetes.io~local-volume/pv", file("kubernetes.io/local-volume", "pv")),
        ("volumes/example.com~driver/flex", file("example.com/driver", "flex")),
        ("volume-subpaths/conf/web/3", sub),
        ("etc-hosts", pushed(PushedKind::EtcHosts, "hosts")),
        ("containers/web/1a2b3c4d", VolumeKind::TerminationLog),
        ("volumes/kubernetes.io~configmap/..data", pushed(PushedKind::ConfigMap, "..data")),
    ] {
        assert_eq!(kind(&format!("/var/lib/kubelet/pods/{UID}/{path}")), expected, "{path}");
    }
}

#[test]
fn paths_of_containerd_are_told_apart() {
    for (path, expected) in [
        (
            "/var/lib/containerd/io.containerd.grpc.v1.cri/sandboxes/5c1f3e/hosts",
            pushed(PushedKind::EtcHosts, "hosts"),
        ),
        (
            "/var/lib/containerd/io.containerd.grpc.v1.cri/sandboxes/5c1f3e/hostname",
            pushed(PushedKind::Hostname, "hostname"),
        ),
        (
            "/var/lib/containerd/io.containerd.grpc.v1.cri/sandboxes/5c1f3e/resolv.conf",
            pushed(PushedKind::ResolvConf, "resolv.conf"),
        ),
        ("/run/containerd/io.containerd.grpc.v1.cri/sandboxes/5c1f3e/shm", VolumeKind::Shm),
        ("/run/containerd/io.containerd.cri.v1.runtime/sandboxes/5c1f3e/shm", VolumeKind::Shm),
        ("/run/containerd/io.containerd.sandbox.controller.v1.shim/k8s.io/5c1f3e/shm", VolumeKind::Shm),
        ("/var/lib/containerd/io.containerd.grpc.v1.cri/containers/ab/volumes/cd", VolumeKind::ImageDeclared),
        ("/run/containerd/io.containerd.grpc.v1.cri/image-volumes/5c1f3e/ab12", image("ab12", "")),
        ("/run/containerd/io.containerd.grpc.v1.cri/image-volumes/5c1f3e/ab12/usr/x", image("ab12", "usr/x")),
    ] {
        assert_eq!(kind(path), expected, "{path}");
    }
}

#[test]
fn everything_else_is_refused() {
    use Unsupported::{HostPath, Internal, NotNormal, OtherPod};
    let own = format!("/var/lib/kubelet/pods/{UID}");
    let cri = "/var/lib/containerd/io.containerd.grpc.v1.cri";
    for (path, expected) in [
        ("/".to_owned(), NotNormal),
        ("/etc".to_owned(), HostPath),
        ("/dev/shm".to_owned(), HostPath),
        ("/var/lib/kubelet".to_owned(), HostPath),
        ("/var/lib/kubelet-evil/pods/x".to_owned(), HostPath),
        ("/var/lib/kubelet/config.yaml".to_owned(), Internal),
        ("/var/lib/kubelet/pods".to_owned(), Internal),
        (own.clone(), Internal),
        (format!("{own}/volumes"), Internal),
        (format!("{own}/volumes/kubernetes.io~empty-dir"), Internal),
        (format!("{own}/volumes/kubernetes.io~empty-dir/tmp/sub"), Internal),
        (format!("{own}/volumes/kubernetes.io~secret/tls/..data/key"), Internal),
        (format!("{own}/volumes/kubernetes.io~csi/pvc-1/vol_data.json"), Internal),
        (format!("{own}/volumes/kubernetes.io~csi/pvc-1/mount/deep"), Internal),
        (format!("{own}/volumes/kubernetes.io~csi/pvc-1"), Internal),
        (format!("{own}/volumes/kubernetes.io~nfs/share/mount"), Internal),
        (format!("{own}/volumes/kubernetes.io~empty-dir/tmp/mount"), Internal),
        ("/var/lib/kubelet/pods/other/volumes/kubernetes.io~csi/pvc-1/mount".to_owned(), OtherPod),
        ("/var/lib/kubelet/plugins/kubernetes.io/csi/x/globalmount".to_owned(), Internal),
        (format!("{own}/volume-subpaths/conf/web"), Internal),
        (format!("{own}/volume-subpaths/conf/web/x"), Internal),
        (format!("{own}/plugins/x"), Internal),
        (format!("{own}/containers/web"), Internal),
        ("/var/lib/kubelet/pods/other/volumes/kubernetes.io~secret/tls".to_owned(), OtherPod),
        ("/var/lib/kubelet/pods/other/etc-hosts".to_owned(), OtherPod),
        (format!("{cri}/sandboxes/other/hosts"), OtherPod),
        (format!("/run/containerd/{SANDBOX_CONTROLLER}/k8s.io/other/hosts"), OtherPod),
        (format!("/run/containerd/{SANDBOX_CONTROLLER}/k8s.io/{ID}/config.json"), Internal),
        (format!("/run/containerd/{SANDBOX_CONTROLLER}/k8s.io/{ID}"), Internal),
        (format!("{cri}/sandboxes/{ID}"), Internal),
        (format!("{cri}/sandboxes/{ID}/hosts/x"), Internal),
        (format!("{cri}/sandboxes"), Internal),
        ("/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots/1/fs".to_owned(), Internal),
        ("/run/containerd/containerd.sock".to_owned(), Internal),
        (String::new(), NotNormal),
        ("etc".to_owned(), NotNormal),
        (format!("{own}/volumes/kubernetes.io~empty-dir/tmp/"), NotNormal),
        (format!("{own}/volumes/kubernetes.io~empty-dir/.."), NotNormal),
        (format!("{own}/volumes/kubernetes.io~empty-dir/../../../other"), NotNormal),
        (format!("{own}/./etc-hosts"), NotNormal),
        (format!("{own}//etc-hosts"), NotNormal),
        (format!("/{own}/etc-hosts"), NotNormal),
        (format!("{own}/etc-hosts\0"), NotNormal),
    ] {
        assert_eq!(kind(&path), VolumeKind::Unsupported(expected), "{path}");
    }
}

#[test]
fn no_name_matches_an_empty_name() {
    let nobody = PodIdentity::default();
    for path in
        ["/var/lib/kubelet/pods/x/etc-hosts", "/run/containerd/io.containerd.grpc.v1.cri/sandboxes/x/shm"]
    {
        let kind = classify(path, nobody, &Roots::default());
        assert_eq!(kind, VolumeKind::Unsupported(Unsupported::OtherPod), "{path}");
    }
}

#[test]
fn the_hosts_shm_means_the_guests_where_host_ipc_is_allowed() {
    let pod = PodIdentity { sandbox_id: ID, pod_uid: UID, host_ipc: true };
    assert_eq!(classify("/dev/shm", pod, &Roots::default()), VolumeKind::Shm);
    assert_eq!(
        classify("/dev/shm/x", pod, &Roots::default()),
        VolumeKind::Unsupported(Unsupported::HostPath)
    );
}

#[test]
fn roots_are_configurable() {
    let roots = Roots {
        kubelet: vec!["/data/kubelet".to_owned()],
        containerd: vec!["/data/c".to_owned(), "bad".to_owned()],
    };
    let pod = PodIdentity { sandbox_id: ID, pod_uid: UID, host_ipc: false };
    let hosts = classify(&format!("/data/kubelet/pods/{UID}/etc-hosts"), pod, &roots);
    assert_eq!(hosts, pushed(PushedKind::EtcHosts, "hosts"));
    let shm = classify(&format!("/data/c/io.containerd.grpc.v1.cri/sandboxes/{ID}/shm"), pod, &roots);
    assert_eq!(shm, VolumeKind::Shm);
    let default = classify(&format!("/var/lib/kubelet/pods/{UID}/etc-hosts"), pod, &roots);
    assert_eq!(default, VolumeKind::Unsupported(Unsupported::HostPath));
}

#[test]
fn violations_name_the_volume_or_its_path() {
    let policy = PolicyConfig::default();
    let text = |path: &str| kind(path).violation(path, None, &policy).map(|violation| violation.to_string());
    assert_eq!(text("/etc").unwrap(), "/etc is of an unsupported volume Type");
    assert_eq!(text("/").unwrap(), "/ is of an unsupported volume Type");
    assert_eq!(
        text(&format!("/var/lib/kubelet/pods/{UID}/volumes/kubernetes.io~nfs/share")).unwrap(),
        "share not supported because: volumes of kubernetes.io/nfs are not supported in mode fargate"
    );
    let image = "/run/containerd/io.containerd.grpc.v1.cri/image-volumes/5c1f3e/ab12/x";
    assert_eq!(text(image).unwrap(), "ab12 is of an unsupported volume Type");
    let granted: PolicyConfig = toml::from_str("allow.image_volumes = true").unwrap();
    assert_eq!(kind(image).violation(image, None, &granted), None);
    assert_eq!(text(&format!("/var/lib/kubelet/pods/{UID}/etc-hosts")), None);
}

#[test]
fn a_root_that_is_elsewhere_is_told_from_a_path_of_the_host() {
    let pod = PodIdentity { sandbox_id: "s", pod_uid: "u-1", host_ipc: false };
    let roots = Roots::default();
    let missing = |path| missing_root(path, pod, &roots);
    let k3s = "/run/k3s/containerd";
    let hostname = format!("{k3s}/io.containerd.grpc.v1.cri/sandboxes/s/hostname");
    let hosts = format!("{k3s}/{SANDBOX_CONTROLLER}/k8s.io/s/hosts");
    assert_eq!(missing(&hostname), Some(("containerd", k3s)));
    assert_eq!(missing(&hosts), Some(("containerd", k3s)));
    assert_eq!(missing("/data/kubelet/pods/u-1/etc-hosts"), Some(("kubelet", "/data/kubelet")));
    for path in [
        // The host's, another pod's, below a root already, directly below `/`, not in normal form.
        "/etc",
        "/data/kubelet/pods/u-2/etc-hosts",
        "/run/containerd/io.containerd.grpc.v1.cri/sandboxes/other/hostname",
        "/io.containerd.grpc.v1.cri/sandboxes/s/hostname",
        "/run/k3s/../io.containerd.grpc.v1.cri/sandboxes/s/hostname",
    ] {
        assert_eq!(missing(path), None, "{path}");
    }
    let named = Roots { containerd: vec![k3s.to_owned()], ..Roots::default() };
    assert_eq!(missing_root(&hostname, pod, &named), None);
    let unknown = PodIdentity { pod_uid: "", ..pod };
    assert_eq!(missing_root("/data/pods//x", unknown, &Roots::default()), None);
}
