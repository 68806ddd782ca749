//! A container's OCI spec, as the shim sends it and its user wrote it: what of it libcontainer gets.
#![no_main]

use std::collections::BTreeMap;
use std::path::Path;

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use oci_spec::runtime::{LinuxNamespaceType, Spec};
use ravelin_agent::container::fuzzing::{Guest, Source, complete};
use ravelin_agent::namespaces::Ids;
use ravelin_agent::paths::NAMESPACES;
use ravelin_proto::agent::{IdRange, UserNamespace};

const VALUES: [&str; 20] = [
    r#"[{"type": "user"}]"#,
    r#"[{"type": "time"}]"#,
    r#"{"type": "network", "path": "/proc/1/ns/net"}"#,
    r#"[{"containerID": 0, "hostID": 65536, "size": 65536}]"#,
    r#"{"prestart": [{"path": "/bin/evil"}]}"#,
    r#"{"destination": "/x", "type": "bind", "source": "", "options": ["rbind", "rw", "rro"]}"#,
    r#"{"destination": "/x", "type": "tmpfs", "options": ["mode=1777", "size=1"]}"#,
    r#"{"destination": "/y", "type": "overlay", "options": ["lowerdir=/"]}"#,
    r#"["rshared", "bind"]"#,
    r#"["idmap"]"#,
    r#"[{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229}]"#,
    r#"[{"path": "/dev/sda", "type": "b", "major": 8, "minor": 0}]"#,
    r#"[{"allow": true, "access": "rwm"}]"#,
    r#"{"unified": {"memory.high": "1", "io.max": "8:0 rbps=1", "a/b": "1"}}"#,
    r#"{"weight": 5}"#,
    r#"{"closID": "x"}"#,
    r#"{"mode": "MPOL_BIND", "nodes": "0"}"#,
    r#"{"uid": 4294967295, "gid": 0}"#,
    r#"["PATH=/bin", "=x", "novalue"]"#,
    "\"rshared\"",
];

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    ravelin_fuzz::json::mutate(data, size, max_size, seed, &VALUES)
});

fuzz_target!(|text: &[u8]| {
    let Ok(node) = serde_json::from_slice::<Spec>(text) else { return };
    let behind = |(index, path): (usize, &str)| {
        (index, Source { path: path.into(), readonly: index == 1, nodev: index == 2 })
    };
    let sources: BTreeMap<_, _> = [(1, "/run/volumes/v"), (2, "/run/emptydir/e")].map(behind).into();
    let fuse = r#"{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229}"#;
    // As often in a pod with a user namespace as in one without.
    let range = Some(IdRange { first: 65_536, size: 65_536 });
    let ids = Ids::new(UserNamespace { users: range, groups: range }).unwrap();
    let ids = Some(&ids).filter(|_| text.len() % 2 == 0);
    let guest = Guest {
        id: "c1",
        rootfs: Path::new("/run/rootfs"),
        sources: &sources,
        pid_namespace: None,
        ids,
        terminal: false,
        has_control: &|file| matches!(file, "hugetlb.2MB.max" | "memory.oom.group" | "memory.swap.max"),
        nodes: &|| Ok(vec![serde_json::from_str(fuse).unwrap()]),
    };
    let Ok(completed) = complete(&node, &guest) else { return };
    let spec = completed.spec;
    assert!(spec.hooks().is_none() && spec.annotations().is_none() && spec.hostname().is_none());
    assert_eq!(spec.root().as_ref().unwrap().path(), Path::new("/run/rootfs"));
    let linux = spec.linux().as_ref().unwrap();
    assert_eq!(linux.cgroups_path().as_deref(), Some(Path::new("/pod/c1")));
    assert!(linux.seccomp().is_none() && linux.sysctl().is_none() && linux.uid_mappings().is_none());
    let own = [LinuxNamespaceType::Pid, LinuxNamespaceType::Mount, LinuxNamespaceType::Cgroup];
    let namespaces = linux.namespaces().as_ref().unwrap();
    for namespace in namespaces {
        match namespace.path() {
            None => assert!(own.contains(&namespace.typ())),
            Some(path) => assert!(ids.is_some() && path.starts_with(NAMESPACES), "{path:?}"),
        }
    }
    let has_users = namespaces.iter().any(|namespace| namespace.typ() == LinuxNamespaceType::User);
    assert_eq!(has_users, ids.is_some());
    for device in linux.devices().iter().flatten() {
        assert_eq!(device.path(), Path::new("/dev/fuse"), "a device of the node passed");
    }
    for mount in spec.mounts().iter().flatten() {
        let source = mount.source().as_deref().unwrap();
        let options = mount.options().clone().unwrap_or_default();
        let is = |name: &str| options.iter().any(|option| option == name);
        if is("bind") || is("rbind") {
            assert!(sources.values().any(|behind| behind.path == source), "{source:?} is bound");
            assert!(source != Path::new("/run/volumes/v") || (is("ro") && !is("rw")));
        } else {
            assert!(!source.is_absolute(), "{source:?} is mounted");
        }
    }
    let process = spec.process().as_ref().unwrap();
    let capabilities = process.capabilities().as_ref().unwrap();
    // An absent set would be the agent's own.
    assert!(capabilities.bounding().is_some() && capabilities.effective().is_some());
    assert!(capabilities.ambient().is_some() && capabilities.inheritable().is_some());
    assert!(process.oom_score_adj().is_some() && process.user().uid() <= i32::MAX.cast_unsigned());
    // libcontainer's builder reads it again.
    serde_json::from_slice::<Spec>(&serde_json::to_vec(&spec).unwrap()).unwrap();
});
