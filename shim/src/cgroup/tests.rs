use std::process::{Command, Stdio};

use super::path::normalize;
use super::{CgroupError, Limits, PodCgroup, delete, weight};
use crate::testing::skip;

#[test]
fn paths_of_both_drivers_are_understood() {
    let cases = [
        ("/kubepods/burstable/pod1/abc", "kubepods/burstable/pod1/abc"),
        ("k8s.io/abc", "k8s.io/abc"),
        ("/test/a:b/c", "test/a:b/c"),
        (
            "kubepods-burstable-pod1.slice:cri-containerd:abc",
            "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/cri-containerd-abc.scope",
        ),
        (":cri-containerd:abc", "system.slice/cri-containerd-abc.scope"),
        ("-.slice::abc", "abc.scope"),
        ("a.slice:x:b.slice", "a.slice/b.slice"),
    ];
    for (given, expected) in cases {
        assert_eq!(normalize(given).unwrap(), expected);
    }
    for wrong in ["", "/", "/a/../b", "/a//b", "a--b.slice:x:y", "nonsense:x:y", "/a/cgroup.procs"] {
        assert!(matches!(normalize(wrong), Err(CgroupError::Path { .. })), "{wrong}");
    }
}

#[test]
fn shares_become_weights_as_runc_has_it() {
    assert_eq!([2, 1024, 262_144, 0].map(weight), [1, 39, 10_000, 1]);
}

#[tokio::test]
async fn a_process_is_limited_killed_and_gone() {
    if !rustix::process::geteuid().is_root()
        || std::fs::create_dir("/sys/fs/cgroup/memory/ravelin-probe").is_err()
    {
        let v2 = std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
        if !v2 || std::fs::create_dir("/sys/fs/cgroup/ravelin-probe").is_err() {
            skip("it needs to make a cgroup");
            return;
        }
    }
    for probe in ["/sys/fs/cgroup/memory/ravelin-probe", "/sys/fs/cgroup/ravelin-probe"] {
        let _ = std::fs::remove_dir(probe);
    }
    let path = format!("/ravelin-test-{}/pod", std::process::id());
    let limits = Limits {
        cpu_quota_us: Some(25_000),
        cpu_period_us: 100_000,
        cpu_shares: Some(512),
        memory_bytes: Some(64 << 20),
        threads: Some(40),
    };
    let without_quota = Limits { cpu_quota_us: None, ..limits.clone() };
    let cgroup = PodCgroup::create(&path, &without_quota).unwrap();
    cgroup.set(&limits).unwrap();
    let directories = cgroup.directories();
    let read = |name: &str| {
        directories
            .iter()
            .find_map(|d| std::fs::read_to_string(d.join(name)).ok())
            .unwrap_or_default()
            .trim()
            .to_owned()
    };
    let memory = read("memory.max") + &read("memory.limit_in_bytes");
    assert_eq!(memory, (64 << 20).to_string());
    // Where there is such a controller.
    assert!(["40", ""].contains(&read("pids.max").as_str()));
    assert!(read("cpu.max") == "25000 100000" || read("cpu.cfs_quota_us") == "25000");

    assert_eq!(cgroup.memory_allowed_above(), None);
    for directory in &directories {
        let above = directory.parent().unwrap();
        for file in ["memory.max", "memory.limit_in_bytes"].map(|file| above.join(file)) {
            if file.exists() {
                std::fs::write(file, (80 << 20).to_string()).unwrap();
            }
        }
    }
    assert_eq!(cgroup.memory_allowed_above(), Some(80 << 20));
    assert!(!cgroup.oom_killed());

    let mut child = Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().unwrap();
    cgroup.add(child.id()).unwrap();
    assert!(read("cgroup.procs").lines().any(|pid| pid == child.id().to_string()));
    // A zombie would keep nothing, but this test is the parent and must reap it.
    let reaper = std::thread::spawn(move || child.wait().unwrap());
    delete(&path).await.unwrap();
    assert!(!reaper.join().unwrap().success());
    assert!(directories.iter().all(|directory| !directory.exists()));
    cgroup.delete().await.unwrap();
    delete(path.trim_end_matches("/pod")).await.unwrap();
}
