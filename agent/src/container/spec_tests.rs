use oci_spec::runtime::{Mount, get_default_mounts};
use serde_json::{Value, json};

use super::*;

const SPEC: &str = r#"{
  "ociVersion": "1.1.0", "hostname": "pod", "root": {"path": "", "readonly": true},
  "process": {"user": {"uid": 7, "gid": 8, "additionalGids": [9]}, "args": ["sh"], "cwd": "/",
              "env": ["PATH=/bin"], "capabilities": {"bounding": ["CAP_KILL"]}},
  "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"},
             {"destination": "/data", "type": "bind", "source": "", "options": ["rbind", "ro"]}],
  "linux": {
    "namespaces": [{"type": "network"}, {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}],
    "sysctl": {"net.ipv4.ip_forward": "1"},
    "seccomp": {"defaultAction": "SCMP_ACT_ALLOW"},
    "resources": {"cpu": {"shares": 512, "cpus": "40-47"}, "memory": {"limit": 1048576, "swap": 1048576},
                  "hugepageLimits": [{"pageSize": "2MB", "limit": 0}, {"pageSize": "1GB", "limit": 0}],
                  "unified": {"memory.oom.group": "1", "cpuset.cpus": "9"}}}}"#;

fn parse(text: &str) -> Spec {
    serde_json::from_str(text).unwrap()
}

fn complete_with(spec: Spec, sources: &[(usize, &str)]) -> Result<Completed> {
    let source =
        |(index, path): &(usize, &str)| (*index, Source { path: path.into(), readonly: true, nodev: false });
    complete_from(&spec, &sources.iter().map(source).collect())
}

fn complete_from(spec: &Spec, sources: &BTreeMap<usize, Source>) -> Result<Completed> {
    complete(
        spec,
        &Guest {
            id: "c1",
            rootfs: Path::new("/run/rootfs"),
            sources,
            pid_namespace: None,
            ids: None,
            terminal: false,
            has_control: &|file| matches!(file, "hugetlb.2MB.max" | "memory.oom.group"),
            nodes: &|| {
                Ok(vec![
                    serde_json::from_value(
                        json!({"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229}),
                    )
                    .unwrap(),
                ])
            },
        },
    )
}

#[test]
fn a_container_joins_the_pods_namespaces_and_has_its_own_mounts() {
    let done = complete_with(parse(SPEC), &[(1, "/v")]).unwrap();
    let linux = done.spec.linux().clone().unwrap();
    let kinds: Vec<_> = linux.namespaces().as_ref().unwrap().iter().map(LinuxNamespace::typ).collect();
    assert_eq!(kinds, [LinuxNamespaceType::Pid, LinuxNamespaceType::Mount, LinuxNamespaceType::Cgroup]);
    assert_eq!(linux.cgroups_path().as_deref(), Some(Path::new("/pod/c1")));
    assert!(done.spec.hostname().is_none());
    assert_eq!(done.spec.root().as_ref().unwrap().path(), Path::new("/run/rootfs"));
    assert_eq!(done.spec.root().as_ref().unwrap().readonly(), Some(true));
}

#[test]
fn device_files_in_a_file_volume_are_none_of_the_guests_whatever_the_spec_says() {
    let options = |asked: &str, nodev: bool| {
        let mut spec = parse(SPEC);
        spec.mounts_mut().as_mut().unwrap()[1]
            .set_options(Some(["rbind", asked].map(str::to_owned).to_vec()));
        let source = Source { path: "/v".into(), readonly: false, nodev };
        let done = complete_from(&spec, &BTreeMap::from([(1, source)])).unwrap();
        done.spec.mounts().as_ref().unwrap()[1].options().clone().unwrap()
    };
    assert_eq!(options("dev", true), ["rbind", "nodev"]);
    assert_eq!(options("ro", true), ["rbind", "ro", "nodev"]);
    assert_eq!(options("dev", false), ["rbind", "dev"]);
}

#[test]
fn what_the_agent_does_itself_is_taken_out() {
    let done = complete_with(parse(SPEC), &[(1, "/v")]).unwrap();
    assert!(done.seccomp.is_some());
    assert_eq!(done.sysctls["net.ipv4.ip_forward"], "1");
    let linux = done.spec.linux().clone().unwrap();
    assert!(linux.seccomp().is_none() && linux.sysctl().is_none());
}

/// The spec with a value put at a JSON pointer.
fn with(pointer: &str, value: Value) -> Spec {
    let mut spec: Value = serde_json::from_str(SPEC).unwrap();
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    spec.pointer_mut(parent).unwrap()[key] = value;
    serde_json::from_value(spec).unwrap()
}

#[test]
fn nothing_of_the_node_passes_that_is_not_named() {
    let done = complete_with(parse(SPEC), &[(1, "/v")]).unwrap();
    let plain = serde_json::to_value(&done.spec).unwrap();
    for (pointer, value) in [
        ("/annotations", json!({"run.oci.systemd.subgroup": "x"})),
        ("/domainname", json!("node.example")),
        ("/hooks", json!({"prestart": [{"path": "/bin/evil"}]})),
        ("/linux/cgroupsPath", json!("/kubepods/x")),
        ("/linux/intelRdt", json!({"closID": "x"})),
        ("/linux/mountLabel", json!("system_u:object_r:x")),
        ("/linux/rootfsPropagation", json!("rslave")),
        ("/process/apparmorProfile", json!("cri-containerd.apparmor.d")),
        ("/process/selinuxLabel", json!("system_u:system_r:x")),
        ("/process/execCPUAffinity", json!({"initial": "40-47"})),
        ("/process/noNewPrivileges", json!(false)),
        ("/linux/resources/network", json!({"classID": 5})),
        ("/linux/resources/rdma", json!({"mlx5_1": {"hcaHandles": 3}})),
    ] {
        let done = complete_with(with(pointer, value), &[(1, "/v")]).unwrap();
        assert_eq!(serde_json::to_value(&done.spec).unwrap(), plain, "{pointer}");
    }
}

#[test]
fn what_a_container_would_miss_is_refused_by_name() {
    let mapping = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
    for (pointer, value, word) in [
        ("/linux/uidMappings", mapping.clone(), "user namespace"),
        ("/linux/gidMappings", mapping, "user namespace"),
        ("/linux/timeOffsets", json!({"monotonic": {"secs": 5}}), "time"),
        ("/linux/namespaces", json!([{"type": "time"}]), "time"),
        ("/linux/namespaces", json!([{"type": "user"}]), "user namespace"),
        ("/linux/netDevices", json!({"eth5": {"name": "eth1"}}), "network devices"),
        ("/linux/rootfsPropagation", json!("unbindable"), "unbindable"),
        (
            "/linux/devices",
            json!([{"path": "/dev/nvidia0", "type": "c", "major": 195, "minor": 0}]),
            "/dev/nvidia0",
        ),
        ("/linux/resources/unified", json!({"io.max": "8:0 rbps=5"}), "io.max"),
        ("/mounts/0/options", json!(["tmpcopyup"]), "tmpcopyup"),
    ] {
        let refused = complete_with(with(pointer, value), &[(1, "/v")]).unwrap_err();
        assert!(matches!(&refused, AgentError::Invalid(text) if text.contains(word)), "{pointer}: {refused}");
    }
}

#[test]
fn a_container_that_passes_mounts_on_has_a_shared_root() {
    for (asked, given) in [("rshared", Some("shared")), ("rslave", None), ("rprivate", None), ("", None)] {
        let done = complete_with(with("/linux/rootfsPropagation", json!(asked)), &[(1, "/v")]).unwrap();
        assert_eq!(done.spec.linux().as_ref().unwrap().rootfs_propagation().as_deref(), given, "{asked}");
    }
}

#[test]
fn a_privileged_container_gets_the_guests_devices() {
    let mut spec = with("/linux/resources/devices", json!([{"allow": true, "access": "rwm"}]));
    let nodes = json!([{"path": "/dev/nvme0", "type": "c", "major": 240, "minor": 0}]);
    spec.linux_mut().as_mut().unwrap().set_devices(Some(serde_json::from_value(nodes).unwrap()));
    let done = complete_with(spec, &[(1, "/v")]).unwrap();
    let devices = done.spec.linux().as_ref().unwrap().devices().clone().unwrap();
    assert_eq!(
        devices.iter().map(|device| device.path().to_str().unwrap()).collect::<Vec<_>>(),
        ["/dev/fuse"]
    );
}

#[test]
fn limits_are_the_guests() {
    let done = complete_with(parse(SPEC), &[(1, "/v")]).unwrap();
    let resources = done.spec.linux().as_ref().unwrap().resources().clone().unwrap();
    assert_eq!(resources.cpu().as_ref().unwrap().shares(), Some(512));
    assert!(resources.cpu().as_ref().unwrap().cpus().is_none());
    assert_eq!(resources.unified().as_ref().unwrap().keys().collect::<Vec<_>>(), ["memory.oom.group"]);
}

#[test]
fn the_process_gets_home_ordinary_oom_score_and_no_stray_capability() {
    let done = complete_with(parse(SPEC), &[(1, "/v")]).unwrap();
    let process = done.spec.process().clone().unwrap();
    assert!(process.env().as_ref().unwrap().contains(&"HOME=".to_owned()));
    assert_eq!(process.oom_score_adj(), Some(0));
    let capabilities = process.capabilities().clone().unwrap();
    assert_eq!(capabilities.bounding().as_ref().unwrap().len(), 1);
    assert!(capabilities.inheritable().as_ref().unwrap().is_empty());
    assert!(capabilities.ambient().as_ref().unwrap().is_empty());
    // Only what loading the filter takes.
    assert_eq!(
        capabilities.effective().as_ref().unwrap().iter().collect::<Vec<_>>(),
        [&Capability::SysAdmin]
    );
}

#[test]
fn a_process_that_gains_no_privileges_needs_none_for_its_filter() {
    let mut process = parse(SPEC).process().clone().unwrap();
    process.set_no_new_privileges(Some(true));
    let process = complete_process(process, true, true, Some(100)).unwrap();
    assert!(process.capabilities().as_ref().unwrap().effective().as_ref().unwrap().is_empty());
    assert_eq!(process.oom_score_adj(), Some(100));
    assert_eq!(process.terminal(), Some(true));
}

#[test]
fn ids_that_the_kernel_takes_for_none_are_refused() {
    for (user, there) in [
        (json!({ "uid": 2_147_483_647_u32, "gid": 0 }), true),
        (json!({ "uid": u32::MAX, "gid": 0 }), false),
        (json!({ "uid": 1, "gid": u32::MAX }), false),
        (json!({ "uid": 1, "gid": 1, "additionalGids": [5, 2_147_483_648_u32] }), false),
    ] {
        let process = serde_json::from_value(json!({ "args": ["a"], "cwd": "/", "user": user })).unwrap();
        let completed = complete_process(process, false, false, None);
        assert_eq!(completed.is_ok(), there, "{user}");
        assert!(completed.err().is_none_or(|text| text.contains("does not exist")));
    }
}

#[test]
fn a_variable_without_a_name_or_a_value_is_refused_as_runc_does() {
    for (variable, why) in [
        ("A", Some("missing '='")),
        ("=x", Some("name can't be empty")),
        ("A=x\0", Some("null")),
        ("A==x", None),
    ] {
        let process = json!({ "args": ["a"], "cwd": "/", "user": { "uid": 0, "gid": 0 }, "env": [variable] });
        let completed = complete_process(serde_json::from_value(process).unwrap(), false, false, None);
        match (why, completed) {
            (Some(why), Err(text)) => assert!(text.contains(why), "{text}"),
            (why, completed) => assert_eq!(completed.is_ok(), why.is_none(), "{variable:?}"),
        }
    }
}

#[test]
fn an_exec_inherits_what_it_does_not_speak_of() {
    let first = parse(SPEC).process().clone().unwrap();
    let of = |process: serde_json::Value| inherit(serde_json::from_value(process).unwrap(), &first);
    let bare = of(json!({ "args": ["a"], "cwd": "/", "user": { "uid": 7, "gid": 7 } }));
    assert_eq!(bare.capabilities(), first.capabilities());
    assert_eq!((bare.rlimits(), bare.no_new_privileges()), (first.rlimits(), first.no_new_privileges()));
    assert_eq!(bare.user().uid(), 7);
    let own = of(
        json!({ "args": ["a"], "cwd": "/", "user": { "uid": 0, "gid": 0 }, "capabilities": {}, "noNewPrivileges": true,
        "rlimits": [{ "type": "RLIMIT_CORE", "soft": 1, "hard": 2 }] }),
    );
    assert_ne!(own.capabilities(), first.capabilities());
    assert_eq!((own.rlimits().as_ref().unwrap().len(), own.no_new_privileges()), (1, Some(true)));
}

#[test]
fn a_bind_mount_needs_a_guest_path() {
    assert!(matches!(complete_with(parse(SPEC), &[]), Err(AgentError::Invalid(_))));
    assert!(matches!(complete_with(parse(SPEC), &[(1, "/v"), (2, "/w")]), Err(AgentError::Invalid(_))));
    let done = complete_with(parse(SPEC), &[(1, "/v")]).unwrap();
    let mounts = done.spec.mounts().clone().unwrap();
    assert_eq!(mounts[1].source().as_deref(), Some(Path::new("/v")));
    assert!(mounts[1].options().as_ref().unwrap().contains(&"ro".to_owned()));
}

#[test]
fn ordinary_mounts_stay() {
    let mut spec = parse(SPEC);
    let defaults: Vec<Mount> = get_default_mounts();
    spec.set_mounts(Some(defaults.clone()));
    let done = complete_with(spec, &[]).unwrap();
    assert_eq!(done.spec.mounts().as_ref().unwrap().len(), defaults.len());
}
