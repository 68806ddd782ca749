//! What containerd prepares before it calls a shim: bundles with their specs, and the sandbox's network namespace.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::Run;

pub(super) fn make_netns(name: &str) {
    let ip = |line: &str| drop(Run::new("ip").args(line.split(' ')).ok());
    ip(&format!("netns add {name}"));
    ip(&format!("-n {name} link set lo up"));
    // Both ends inside: nobody has to remove one of them.
    ip(&format!("-n {name} link add eth0 mtu 1500 type veth peer name outside"));
    ip(&format!("-n {name} addr add 10.55.0.2/24 dev eth0"));
    ip(&format!("-n {name} link set eth0 up"));
    ip(&format!("-n {name} link set outside up"));
    ip(&format!("-n {name} route add default via 10.55.0.1 dev eth0"));
}

pub(super) fn make_bundle(bundle: &Path, spec: &Value) {
    // A log that is a file instead of a pipe can be read when a test has failed.
    fs::create_dir_all(bundle.join("rootfs")).expect("a bundle can be made");
    fs::write(bundle.join("log"), "").expect("a log can be made");
    fs::write(bundle.join("config.json"), spec.to_string()).expect("a spec can be written");
}

pub(super) fn process_spec(args: &[&str]) -> Value {
    let capabilities =
        json!(["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_KILL", "CAP_SETGID", "CAP_SETUID"]);
    json!({
        "user": { "uid": 0, "gid": 0 },
        "args": args,
        "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
        "cwd": "/",
        "capabilities": { "bounding": capabilities, "effective": capabilities, "permitted": capabilities },
        "noNewPrivileges": true,
    })
}

pub(super) fn sandbox_spec(id: &str) -> Value {
    json!({
        "ociVersion": "1.1.0",
        "process": process_spec(&["/pause"]),
        "root": { "path": "rootfs", "readonly": true },
        "hostname": "shim-test",
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"] },
        ],
        "linux": {
            "cgroupsPath": format!("/shim-tests/{id}"),
            "namespaces": [
                { "type": "pid" }, { "type": "ipc" }, { "type": "uts" }, { "type": "mount" },
                { "type": "network", "path": format!("/run/netns/{id}") },
            ],
        },
        "annotations": {
            "io.kubernetes.cri.container-type": "sandbox",
            "io.kubernetes.cri.sandbox-id": id,
            "io.kubernetes.cri.sandbox-name": "shim-test",
            "io.kubernetes.cri.sandbox-namespace": "tests",
            "io.kubernetes.cri.sandbox-cpu-period": "100000",
            "io.kubernetes.cri.sandbox-cpu-quota": "100000",
            "io.kubernetes.cri.sandbox-cpu-shares": "1024",
            "io.kubernetes.cri.sandbox-memory": (512 << 20).to_string(),
        },
    })
}

pub(super) fn container_spec(sandbox: &str, id: &str, args: &[&str]) -> Value {
    json!({
        "ociVersion": "1.1.0",
        "process": process_spec(args),
        "root": { "path": "rootfs" },
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"] },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"] },
            { "destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"] },
            { "destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"] },
            { "destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"] },
            { "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["nosuid", "noexec", "nodev", "relatime", "ro"] },
        ],
        "linux": {
            "cgroupsPath": format!("/shim-tests/{id}"),
            "resources": { "devices": [{ "allow": false, "access": "rwm" }] },
            "namespaces": [
                { "type": "pid" }, { "type": "mount" }, { "type": "ipc" }, { "type": "uts" },
                { "type": "network" },
            ],
        },
        "annotations": {
            "io.kubernetes.cri.container-type": "container",
            "io.kubernetes.cri.container-name": id,
            "io.kubernetes.cri.sandbox-id": sandbox,
        },
    })
}
