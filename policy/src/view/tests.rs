use super::*;

fn spec(json: &str) -> Spec {
    serde_json::from_str(&format!(r#"{{"ociVersion": "1.1.0", {json}}}"#)).unwrap()
}

const SYS_RO: &str =
    r#"{"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "ro"]}"#;
const SYS_RW: &str =
    r#"{"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "rw"]}"#;

fn sandbox(namespaces: &[&str], sys: &str) -> SandboxView {
    let list: Vec<String> = namespaces.iter().map(|name| format!(r#"{{"type": "{name}"}}"#)).collect();
    SandboxView::from_spec(&spec(&format!(
        r#""mounts": [{sys}], "linux": {{"namespaces": [{}]}}"#,
        list.join(",")
    )))
}

#[test]
fn a_namespace_that_is_not_listed_is_the_hosts() {
    let all = ["pid", "ipc", "uts", "mount", "network"];
    assert_eq!(sandbox(&all, SYS_RO), SandboxView::default());
    assert!(sandbox(&["pid", "ipc", "mount"], SYS_RO).host_network);
    assert!(sandbox(&["ipc", "mount", "network"], SYS_RO).host_pid);
    assert!(sandbox(&["pid", "mount", "network"], SYS_RO).host_ipc);
}

#[test]
fn a_sandbox_with_a_writable_sys_is_privileged() {
    let all = ["pid", "ipc", "uts", "mount", "network"];
    assert!(sandbox(&all, SYS_RW).privileged);
    assert!(!sandbox(&all, SYS_RO).privileged);
}

#[test]
fn a_spec_that_says_nothing_asks_for_every_host_namespace() {
    let view = SandboxView::from_spec(&spec(r#""mounts": []"#));
    assert!(view.host_network && view.host_pid && view.host_ipc);
}

fn container(capabilities: &[&str], sys: &str, devices: &str) -> ContainerView {
    let bounding: Vec<String> = capabilities.iter().map(|name| format!("CAP_{name}")).collect();
    let spec = spec(&format!(r#""mounts": [{sys}], "linux": {{"resources": {{"devices": [{devices}]}}}}"#));
    ContainerView::from_spec(&spec, &bounding)
}

const DENY_ALL: &str = r#"{"allow": false, "access": "rwm"}"#;
const NULL_RW: &str = r#"{"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rw"}"#;

#[test]
fn the_default_container_has_nothing_special() {
    let view = container(&crate::DEFAULT_CAPABILITIES, SYS_RO, &format!("{DENY_ALL},{NULL_RW}"));
    assert_eq!(view, ContainerView::default());
}

/// containerd's default set, in its order.
const CONTAINERD: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

fn added(capabilities: &[&str]) -> Vec<String> {
    container(capabilities, SYS_RO, DENY_ALL).added_capabilities
}

#[test]
fn capabilities_beyond_the_default_set_are_listed_in_the_pods_order() {
    let names = ["SYS_ADMIN", "NET_ADMIN", "BPF", "A_NEW_ONE", "SYSLOG"];
    assert_eq!(added(&[&CONTAINERD[..], &names].concat()), names);
    // `drop: [ALL]` leaves what is added.
    assert_eq!(added(&["DAC_READ_SEARCH", "CHOWN", "NET_ADMIN"]), ["DAC_READ_SEARCH", "NET_ADMIN"]);
    assert!(!container(&names, SYS_RO, DENY_ALL).privileged);
}

#[test]
fn a_name_with_its_prefix_is_another_name() {
    // containerd puts `CAP_` before what the pod writes.
    assert_eq!(added(&[&CONTAINERD[..], &["CAP_CHOWN"]].concat()), ["CAP_CHOWN"]);
}

#[test]
fn all_is_called_all_whatever_is_dropped_beside_it_or_named_besides() {
    const ALL: [&str; 41] = crate::capability::KERNEL_ORDER;
    assert_eq!(added(&ALL), ["ALL"]);
    // Kernels before 5.8 know 38.
    assert_eq!(added(&ALL[..38]), ["ALL"]);
    let without =
        |dropped: &[&str]| added(&ALL.into_iter().filter(|name| !dropped.contains(name)).collect::<Vec<_>>());
    assert_eq!(without(&["CHOWN"]), ["ALL"]);
    assert_eq!(without(&["NET_RAW", "SYS_ADMIN", "SYS_MODULE", "SYS_BOOT"]), ["ALL"]);
    assert_eq!(added(&[&ALL[..], &["A_NEW_ONE"]].concat()), ["ALL"]);
}

#[test]
fn every_capability_by_its_name_is_a_list() {
    let names: Vec<&str> =
        crate::capability::KERNEL_ORDER.into_iter().filter(|name| !addable(name)).collect();
    assert_eq!(added(&[&CONTAINERD[..], &names].concat()), names);
}

#[test]
fn a_writable_sys_or_every_device_is_privilege() {
    let names = crate::DEFAULT_CAPABILITIES;
    assert!(container(&names, SYS_RW, DENY_ALL).privileged);
    for rule in
        [r#"{"allow": true, "access": "rwm"}"#, r#"{"allow": true, "type": "a", "major": -1, "minor": -1}"#]
    {
        assert!(container(&names, SYS_RO, rule).privileged, "{rule}");
    }
    for rule in
        [r#"{"allow": true, "type": "c", "access": "m"}"#, r#"{"allow": true, "type": "a", "access": "m"}"#]
    {
        assert!(!container(&names, SYS_RO, rule).privileged, "{rule}");
    }
}
