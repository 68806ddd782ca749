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
    let list: Vec<String> = capabilities.iter().map(|name| format!("\"CAP_{name}\"")).collect();
    ContainerView::from_spec(&spec(&format!(
        r#""mounts": [{sys}], "linux": {{"resources": {{"devices": [{devices}]}}}},
        "process": {{"cwd": "/", "user": {{"uid": 0, "gid": 0}}, "capabilities": {{"bounding": [{}]}}}}"#,
        list.join(",")
    )))
}

const DENY_ALL: &str = r#"{"allow": false, "access": "rwm"}"#;
const NULL_RW: &str = r#"{"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rw"}"#;

#[test]
fn the_default_container_has_nothing_special() {
    let view = container(&crate::DEFAULT_CAPABILITIES, SYS_RO, &format!("{DENY_ALL},{NULL_RW}"));
    assert_eq!(view, ContainerView::default());
}

#[test]
fn capabilities_beyond_the_default_set_are_listed_in_order() {
    let mut names = crate::DEFAULT_CAPABILITIES.to_vec();
    names.extend(["SYS_ADMIN", "NET_ADMIN", "BPF", "CHECKPOINT_RESTORE", "SYSLOG", "SYS_TTY_CONFIG"]);
    let view = container(&names, SYS_RO, DENY_ALL);
    assert_eq!(
        view.added_capabilities,
        ["BPF", "CHECKPOINT_RESTORE", "NET_ADMIN", "SYSLOG", "SYS_ADMIN", "SYS_TTY_CONFIG"]
    );
    assert!(!view.privileged);
}

#[test]
fn every_capability_is_called_all() {
    let mut names = crate::DEFAULT_CAPABILITIES.to_vec();
    names.extend(BEYOND_DEFAULT);
    assert_eq!(container(&names, SYS_RO, DENY_ALL).added_capabilities, ["ALL"]);
    names.extend(["BPF", "PERFMON", "CHECKPOINT_RESTORE"]);
    assert_eq!(container(&names, SYS_RO, DENY_ALL).added_capabilities, ["ALL"]);
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
