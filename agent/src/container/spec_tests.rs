use oci_spec::runtime::{Mount, get_default_mounts};

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
                  "unified": {"memory.oom.group": "1", "cpuset.cpus": "9", "../x": "1"}}}}"#;

fn parse(text: &str) -> Spec {
    serde_json::from_str(text).unwrap()
}

fn complete_with(spec: Spec, sources: &[(usize, &str)]) -> Result<Completed> {
    let sources =
        sources.iter().map(|(index, path)| (*index, Source { path: path.into(), readonly: true })).collect();
    complete(
        spec,
        &Guest {
            id: "c1",
            rootfs: Path::new("/run/rootfs"),
            sources: &sources,
            pid_namespace: None,
            terminal: false,
            home: &|uid| format!("/home/{uid}"),
            has_control: &|file| matches!(file, "hugetlb.2MB.max" | "memory.oom.group" | "../x"),
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
fn what_the_agent_does_itself_is_taken_out() {
    let done = complete_with(parse(SPEC), &[(1, "/v")]).unwrap();
    assert!(done.seccomp.is_some());
    assert_eq!(done.sysctls["net.ipv4.ip_forward"], "1");
    let linux = done.spec.linux().clone().unwrap();
    assert!(linux.seccomp().is_none() && linux.sysctl().is_none());
}

#[test]
fn host_only_limits_are_dropped() {
    let done = complete_with(parse(SPEC), &[(1, "/v")]).unwrap();
    let linux = done.spec.linux().clone().unwrap();
    let resources = linux.resources().clone().unwrap();
    assert_eq!(resources.cpu().as_ref().unwrap().shares(), Some(512));
    assert!(resources.cpu().as_ref().unwrap().cpus().is_none());
    assert_eq!(resources.memory().unwrap().limit(), Some(1_048_576));
    assert_eq!(resources.memory().unwrap().swap(), None);
    assert_eq!(resources.hugepage_limits().as_ref().unwrap().len(), 1);
    assert_eq!(resources.unified().as_ref().unwrap().keys().collect::<Vec<_>>(), ["memory.oom.group"]);
}

#[test]
fn the_process_gets_home_ordinary_oom_score_and_no_stray_capability() {
    let done = complete_with(parse(SPEC), &[(1, "/v")]).unwrap();
    let process = done.spec.process().clone().unwrap();
    assert!(process.env().as_ref().unwrap().contains(&"HOME=/home/7".to_owned()));
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
    let process = complete_process(process, true, true, Some(100), &|_| "/".into()).unwrap();
    assert!(process.capabilities().as_ref().unwrap().effective().as_ref().unwrap().is_empty());
    assert_eq!(process.oom_score_adj(), Some(100));
    assert_eq!(process.terminal(), Some(true));
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

#[test]
fn a_user_namespace_is_refused() {
    let text = SPEC.replace(r#"{"type": "uts"}"#, r#"{"type": "user"}"#);
    assert!(matches!(complete_with(parse(&text), &[(1, "/v")]), Err(AgentError::Invalid(_))));
}
