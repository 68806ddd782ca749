//! Limits that bite, and machines of the right size.

use ravelin_tests::{Host, Pod, Run, Volume, eventually};
use std::fs;
use std::path::Path;

use crate::report;
use crate::start_failures::configured;

#[test]
fn a_container_killed_for_memory_is_reported_as_oom_killed() {
    let host = Host::shared();
    let pod = host.common_pod();
    let bystander = pod.container().idle().start();
    let hungry = pod
        .container()
        .command(&["tail", "/dev/zero"])
        .set("/linux/resources/memory_limit_in_bytes", 48 << 20)
        .start();
    let ended = hungry.ended();
    assert_eq!((ended.code, ended.reason.as_str()), (137, "OOMKilled"));
    assert_eq!(bystander.exec_sh("echo alive"), "alive");
}

#[test]
fn a_container_stays_within_its_processor_limit_and_can_be_given_another() {
    let host = Host::shared();
    let pod = host.common_pod();
    let container = pod
        .container()
        .idle()
        .set("/linux/resources/cpu_period", 100_000)
        .set("/linux/resources/cpu_quota", 20_000);
    let container = container.set("/linux/resources/memory_limit_in_bytes", 64 << 20).start();
    // Ticks (of 10 ms) of processor time that a program which only computes gets in 10 s of the container's clock.
    let ticks: u64 = container
        .exec_sh(
            "sh -c 'while :; do :; done' & sleep 10; awk '{ print $14 + $15 }' /proc/$!/stat; kill -9 $!",
        )
        .parse()
        .expect("a number");
    assert!((30..=330).contains(&ticks), "{ticks} ticks of processor time in 10 s with a limit of a fifth");
    assert_eq!(
        container.exec_sh("cat /sys/fs/cgroup/cpu.max /sys/fs/cgroup/memory.max"),
        "20000 100000\n67108864"
    );
    let update = ["update", "--cpu-quota", "50000", "--cpu-period", "100000", "--memory", "100663296"];
    Run::crictl().args(update).arg(&container.id).ok();
    assert_eq!(
        container.exec_sh("cat /sys/fs/cgroup/cpu.max /sys/fs/cgroup/memory.max"),
        "50000 100000\n100663296"
    );
}

#[test]
fn a_container_is_given_more_as_far_as_its_machine_has_it() {
    let Some(host) = Host::shared_with_ravelin() else { return };
    // A machine of one vCPU, half of which the pod may use, and of 1 GiB, 256 MiB of which are its kernel's.
    let pod = host.pod().sized(500, 256).start();
    let limits = |cpu_quota: u32, memory: u32| {
        [("cpu-quota", cpu_quota), ("cpu-period", 100_000), ("memory", memory << 20)]
            .map(|(name, value)| format!("--{name}={value}"))
    };
    let container = pod
        .container()
        .idle()
        .set("/linux/resources/cpu_period", 100_000)
        .set("/linux/resources/cpu_quota", 50_000)
        .set("/linux/resources/memory_limit_in_bytes", 256 << 20);
    let container = container.start();
    assert_eq!(processor_limit(&pod), Some("50000 100000".to_owned()));
    let update = |cpu, memory| Run::crictl().arg("update").args(limits(cpu, memory)).arg(&container.id).run();
    let given = update(90_000, 512);
    assert_eq!(given.code, 0, "{}", given.stderr);
    assert_eq!(processor_limit(&pod), Some("90000 100000".to_owned()));
    let now = container.exec_sh("cat /sys/fs/cgroup/cpu.max /sys/fs/cgroup/memory.max");
    assert_eq!(now, "90000 100000\n536870912");
    for (cpu, memory, words) in
        [(150_000, 512, "can have 1000 millis, not 1500"), (90_000, 1024, "can have 768 MiB, not 1024")]
    {
        let refused = update(cpu, memory);
        assert!(refused.code != 0 && refused.stderr.contains(words), "{}", refused.stderr);
    }
    // Nothing of it came to be.
    assert_eq!(container.exec_sh("cat /sys/fs/cgroup/cpu.max /sys/fs/cgroup/memory.max"), now);
    assert_eq!(update(50_000, 256).code, 0);
    assert_eq!(processor_limit(&pod), Some("50000 100000".to_owned()));
}

#[test]
fn a_pod_that_forks_and_allocates_wildly_harms_only_itself() {
    let Some(host) = Host::shared_with_ravelin() else { return };
    let pod = host.pod().sized(1000, 128).allowed(448).start();
    let bystander = pod.container().idle().start();
    // No limit of its own: the machine's memory is the limit, and the agent must survive what happens at it.
    let hungry = pod.sh("for i in $(seq 1 100); do sleep 1000 & done; exec tail /dev/zero");
    assert_eq!(hungry.ended().code, 137);
    assert_eq!(bystander.exec_sh("echo alive"), "alive");
    assert_eq!(pod.sh("echo also alive").output(), "also alive\n");
}

#[test]
fn pods_see_the_size_that_the_table_says() {
    let Some(host) = Host::shared_with_ravelin() else { return };
    // Nothing said: 0.25 vCPU and 0.5 GB.
    {
        let pod = host.pod().without_size().start();
        assert_size(&pod, 1, 512);
        assert_eq!(processor_limit(&pod), Some("25000 100000".to_owned()));
        // By its cgroup it is a guaranteed pod, which the node's kernel kills last.
        let machine = pod.process("ravelin-vmm").expect("a machine serves the pod");
        let score = fs::read_to_string(format!("/proc/{machine}/oom_score_adj")).expect("a score");
        assert_eq!(score.trim(), "-997");
        // The node's vector instructions, which kernels give up when the sizes of their states do not add up.
        let flags = |text: &str| {
            let line = text.lines().find(|line| line.starts_with("flags")).unwrap_or_default().to_owned();
            ["xsave", "avx", "avx2"].map(|flag| line.split_whitespace().any(|word| word == flag))
        };
        let node = fs::read_to_string("/proc/cpuinfo").expect("the host has processors");
        assert_eq!(flags(&pod.sh("cat /proc/cpuinfo").output()), flags(&node));
        // The emulated processor has them, so that they are tried somewhere.
        assert!(flags(&node) == [true; 3] || !node.contains("AMD EPYC-Milan Processor"), "{node}");
    }
    // 500 millis and 600 MiB, and 256 MiB that every pod gets on top: 0.5 vCPU and 1 GB.
    if Host::whole() {
        let pod = host.pod().sized(500, 600).start();
        assert_size(&pod, 1, 1024);
        assert_eq!(processor_limit(&pod), Some("50000 100000".to_owned()));
    }
    // 2 CPUs and 3840 MiB make exactly 4 GB, which 2 vCPUs can have.
    {
        let pod = host.pod().sized(2000, 3840).start();
        assert_size(&pod, 2, 4096);
        assert_eq!(processor_limit(&pod), None);
        // One package of two processors: programs that are licensed or place their threads by package count them.
        let packages = "cd /sys/devices/system/cpu; cat cpu0/topology/physical_package_id cpu1/topology/physical_package_id
                        awk -F ': ' '/^physical id/ { print $2 }' /proc/cpuinfo";
        assert_eq!(pod.sh(packages).output(), "0\n0\n0\n0\n");
    }
}

#[test]
fn a_pod_lives_in_the_memory_that_the_kubelet_sets_apart_for_it() {
    let Some(host) = Host::shared_with_ravelin() else { return };
    // 128 MiB of limits and 320 MiB of the RuntimeClass's overhead: far less than the table's 2 GB for one CPU.
    let pod = host.pod().sized(1000, 128).allowed(448).start();
    assert_size(&pod, 1, 384);
    let cache = Volume::empty_dir(&pod, "cache");
    // Each container leaves what it read in the guest's page cache: together more than the node would bear. A file of holes
    // fills the cache as another does, without the disk's time.
    for round in 1..=4 {
        let container = pod
            .container()
            .sh(&format!("truncate -s 105M /cache/{round} && cat /cache/{round} > /dev/null && echo read"));
        let container = container.set("/linux/resources/memory_limit_in_bytes", 128 << 20);
        assert_eq!(container.mount(&cache.path, "/cache", false).start().output(), "read\n", "round {round}");
    }
    assert_eq!(pod.state(), "SANDBOX_READY");
    // What is too little for a machine is refused, with what to do.
    let refused =
        host.pod().sized(1000, 128).allowed(128).try_start().expect_err("128 MiB cannot hold a machine");
    assert!(refused.contains("the node allows the pod 128 MiB") && refused.contains("overhead"), "{refused}");
}

#[test]
fn a_guest_has_the_memory_that_its_pods_containers_may_use() {
    let Some(host) = Host::alone_with_ravelin() else { return };
    // 512 MiB of limits and 320 MiB of the RuntimeClass's overhead, and 256 MiB to be given later.
    let sized = || host.pod().sized(1000, 512).allowed(832).start();
    let pod = configured("[sizing]\nresize_headroom_mib = 256\n", sized);
    let container = pod.container().idle().set("/linux/resources/memory_limit_in_bytes", 512 << 20).start();
    let update =
        |mib: u64| Run::crictl().args(["update", &format!("--memory={}", mib << 20), &container.id]).run();
    let assert_memory = |mib: u64| {
        let kib: u64 = container.exec_sh("awk '/^MemTotal/ { print $2 }' /proc/meminfo").parse().unwrap();
        // The guest's kernel keeps a little for itself.
        assert!((mib * 88 / 100..=mib).contains(&(kib / 1024)), "{kib} KiB in a guest of {mib} MiB");
    };
    assert_memory(768);
    pod.allow(1088);
    let given = update(768);
    assert_eq!(given.code, 0, "{}", given.stderr);
    assert_memory(1024);
    let refused = update(800);
    assert!(refused.code != 0 && refused.stderr.contains("can have 768 MiB, not 800"), "{}", refused.stderr);
    // The guest keeps what was written in its page cache, and gives it up when its pod is to have less: the node can then
    // take the memory away, and the pod lives on.
    container.exec_sh("dd if=/dev/zero of=/written bs=1M count=500 2> /dev/null");
    let taken = update(128);
    assert_eq!(taken.code, 0, "{}", taken.stderr);
    assert_memory(384);
    pod.allow(448);
    assert_eq!(container.exec_sh("md5sum < /written"), "d8b61b2c0025919d5321461045c8226f  -");
    assert_eq!(pod.state(), "SANDBOX_READY");
}

#[track_caller]
fn assert_size(pod: &Pod<'_>, processors: u64, mib: u64) {
    let said = report(
        &pod.sh("echo nproc=$(nproc); echo kib=$(awk '/^MemTotal/ { print $2 }' /proc/meminfo)").output(),
    );
    assert_eq!(said["nproc"], processors.to_string());
    let seen = said["kib"].parse::<u64>().expect("a number") / 1024;
    // The guest's kernel keeps a little for itself.
    assert!((mib * 88 / 100..=mib).contains(&seen), "{seen} MiB seen in a machine of {mib} MiB");
}

/// The tightest `cpu.max` on the way from the machine's cgroup up to the pod's; none if there is no limit.
#[track_caller]
fn processor_limit(pod: &Pod<'_>) -> Option<String> {
    let machine = eventually("the machine's process is there", || pod.process("ravelin-vmm"));
    let cgroups = fs::read_to_string(format!("/proc/{machine}/cgroup")).expect("the machine runs");
    let path = cgroups.lines().find_map(|line| line.strip_prefix("0::")).expect("the host has version 2");
    assert!(path.contains(&pod.uid), "the machine is not in the pod's cgroup but in {path}");
    let mut limit = None;
    let mut at = Path::new("/sys/fs/cgroup").join(path.trim_start_matches('/'));
    while at != Path::new("/sys/fs/cgroup") {
        let max = fs::read_to_string(at.join("cpu.max")).unwrap_or_default();
        if !max.is_empty() && !max.starts_with("max") {
            limit = Some(max.trim().to_owned());
        }
        assert!(at.pop(), "the path has an end");
    }
    limit
}
