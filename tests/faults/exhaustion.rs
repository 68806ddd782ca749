//! What a node has is used up: its disks, `/run`, memory, processes.

use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ravelin_tests::{Host, Run, until};

use super::inject::Injector;
use super::kill::make_fresh;
use super::kubelet::Op;
use super::steps::Fresh;
use super::trial::{CLEAN, CLEAN_AFTER_CONTAINERD, Fault, Replaced, Trial};
use crate::start_failures::Full;

const TABLE: &str = "exhaustion";
const CONFIG: &str = "/etc/ravelin/ravelin.toml";
const DEADLINES: &str = "[timeouts]\nboot_seconds = 60\ncall_seconds = 30\n";
const STORAGE: &str = "/var/lib/ravelin";
const LIFE: [Op; 6] = [Op::RunPod, Op::Create, Op::Start, Op::Exec, Op::StopPod, Op::RemovePod];

#[test]
fn whatever_is_used_up_is_told_and_leaves_nothing() {
    let Some(host) = Host::alone_with_ravelin() else { return };
    if !Host::has_cgroup2() {
        println!("left out: limits are set on cgroup v2");
        return;
    }
    let mut trial = Trial::begin(&host);
    let _config = Replaced::with(CONFIG, DEADLINES);
    run(&mut trial);
    shims_cgroup(&mut trial, "processes", "pids.max", &["1", "2", "3", "4", "6", "8", "12"]);
    pods_cgroup(&mut trial, "memory", "memory.max", &["1M", "16M", "64M", "128M"]);
    if Host::whole() {
        shims_cgroup(&mut trial, "memory", "memory.max", &["1M", "2M", "4M", "8M"]);
        pods_cgroup(&mut trial, "processes", "pids.max", &["0", "1", "4", "8"]);
        disk(&mut trial, "disk of containerd", Path::new("/var/filler"));
        // Last, for the host is another with it.
        let _disk = Full::make(STORAGE, "48m");
        Trial::live_unharmed();
        trial.begin_anew();
        disk(&mut trial, "disk of scratch disks", &Path::new(STORAGE).join("filler"));
    }
    trial.end();
}

/// Of several values one is enough in `make test`: the one in their middle.
fn some<T>(all: &[T]) -> &[T] {
    let middle = all.len() / 2;
    if Host::whole() { all } else { &all[middle..=middle] }
}

/// A disk is full: before the pod, once it runs, or once its container does. Layers are to be made anew.
fn disk(trial: &mut Trial<'_>, what: &str, filler: &Path) {
    for (moment, before) in [("before the pod", 0), ("when the pod runs", 1), ("when the container runs", 3)]
    {
        let fault = Fault { table: TABLE, what, when: moment };
        if !fault.is_chosen() {
            continue;
        }
        let (mut kubelet, _) = Trial::kubelet();
        if !trial.lead(fault, &mut kubelet, &LIFE[..before]) {
            continue;
        }
        make_fresh(Fresh::Layers);
        fill(filler);
        trial.go_on(fault, &mut kubelet, &LIFE[before..4], CLEAN, || {
            let _ = fs::remove_file(filler);
        });
    }
}

/// Has a file take all room that there is; where a file system can, without writing it.
fn fill(path: &Path) {
    let mut file = fs::File::create(path).expect("a file can be made");
    let mut length = 0;
    for size in (12..=34).rev().map(|bits| 1_i64 << bits) {
        // SAFETY: a plain system call on numbers.
        while unsafe { libc::fallocate(file.as_raw_fd(), 0, length, size) } == 0 {
            length += size;
        }
    }
    file.seek(SeekFrom::End(0)).expect("a file has an end");
    let bytes = [0; 4096];
    while file.write_all(&bytes).is_ok() {}
}

/// `/run`, where bundles, sockets and the pods' states are: full but for so many bytes.
fn run(trial: &mut Trial<'_>) {
    let moments = [
        ("before the pod", 0),
        ("when the pod runs", 1),
        ("when the container is known", 2),
        ("when the container runs", 3),
    ];
    for (moment, before) in some(&moments) {
        for room in some(&[0, 8, 16, 24, 32, 48]) {
            let when = format!("{moment}, {room} KiB left");
            let fault = Fault { table: TABLE, what: "/run", when: &when };
            if !fault.is_chosen() {
                continue;
            }
            let (mut kubelet, _) = Trial::kubelet();
            if !trial.lead(fault, &mut kubelet, &LIFE[..*before]) {
                continue;
            }
            let full = FullRun::with_room(*room);
            trial.go_on(fault, &mut kubelet, &LIFE[*before..4], CLEAN_AFTER_CONTAINERD, || drop(full));
        }
    }
}

/// A `/run` that is as large as what is in it, until this is dropped.
struct FullRun;

impl FullRun {
    fn with_room(kib: u64) -> Self {
        let used = Run::new("df").args(["--output=used", "-k", "/run"]).ok();
        let used: u64 = used.lines().last().and_then(|line| line.trim().parse().ok()).expect("a number");
        Self::resize(&format!("{}k", used + kib));
        Self
    }

    fn resize(size: &str) {
        Run::new("mount").args(["-o", &format!("remount,size={size}"), "/run"]).ok();
    }
}

impl Drop for FullRun {
    fn drop(&mut self) {
        Self::resize("50%");
    }
}

/// Shims, and what they start but machines, have no more of something than so much.
fn shims_cgroup(trial: &mut Trial<'_>, what: &str, file: &str, values: &[&str]) {
    let what = format!("{what} of the shim");
    for value in some(values) {
        let when = format!("{file} is {value}");
        let fault = Fault { table: TABLE, what: &what, when: &when };
        if !fault.is_chosen() {
            continue;
        }
        let cgroup = PathBuf::from("/sys/fs/cgroup/ravelin-faults");
        fs::create_dir_all(&cgroup).expect("a cgroup can be made");
        fs::write(cgroup.join(file), value).expect("a cgroup can be limited");
        let injector = Injector::confining(cgroup.clone());
        let (mut kubelet, _) = Trial::kubelet();
        trial.go_on(fault, &mut kubelet, &LIFE, CLEAN, || {
            drop(injector);
            // One that is in use is found as a part of the footprint.
            until(Duration::from_secs(10), || fs::remove_dir(&cgroup).ok());
        });
    }
}

/// A pod's cgroup, as the kubelet makes it, allows no more of something than so much.
fn pods_cgroup(trial: &mut Trial<'_>, what: &str, file: &str, values: &[&str]) {
    let what = format!("{what} of the pod");
    for value in some(values) {
        let when = format!("{file} is {value}");
        let fault = Fault { table: TABLE, what: &what, when: &when };
        if !fault.is_chosen() {
            continue;
        }
        let (mut kubelet, _) = Trial::kubelet();
        fs::write(kubelet.cgroup().join(file), value).expect("the pod's cgroup can be limited");
        trial.go_on(fault, &mut kubelet, &LIFE, CLEAN, || {});
    }
}
