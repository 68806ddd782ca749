//! All that pods have on a host, as a list that can be held beside an earlier one.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::Duration;

use ravelin_tests::{Run, until};

const SNAPSHOTS: &str = "/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots";
/// Folders that are looked through to a depth, and none of what is deeper.
const FOLDERS: [(&str, usize); 10] = [
    ("/run", 5),
    ("/var/lib/ravelin", 3),
    ("/var/lib/cni", 4),
    ("/var/lib/containerd/io.containerd.runtime.v2.task", 3),
    ("/var/lib/containerd/io.containerd.grpc.v1.cri", 3),
    (SNAPSHOTS, 2),
    ("/var/log/pods", 2),
    ("/dev/shm", 2),
    ("/tmp", 2),
    ("/sys/fs/cgroup", 7),
];
/// What comes and goes without a pod: the run's own share, and the addresses that the CNI gave away last.
const NO_POD: [&str; 2] = ["/run/host", "last_reserved_ip"];
/// What stays for the next pod by intention: images of layers, which go with their layers, and templates of scratch disks.
const KEPT: [&str; 4] = [".erofs", ".record", ".ext4", "/collected"];
/// Programs of the test itself.
const OWN: [&str; 4] = ["crictl", "ctr", "e2e-tests", "sleep"];
/// Open descriptors that containerd may have beside those it had, for its clients come and go.
const CLIENTS: usize = 4;

/// What is there, each kind with its number, and containerd's descriptors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Footprint {
    things: BTreeMap<String, usize>,
    descriptors: usize,
}

impl Footprint {
    pub fn of_host() -> Self {
        let mut all = Vec::new();
        processes(&mut all);
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        all.extend(mounts.lines().map(|line| {
            // Where, and of which kind; not its number.
            let place = line.split(' ').nth(4).unwrap_or_default();
            let kind = line.split_once(" - ").and_then(|(_, kind)| kind.split(' ').next());
            format!("mount {place} {}", kind.unwrap_or_default())
        }));
        for (folder, depth) in FOLDERS {
            search(Path::new(folder), depth, &mut all);
        }
        for device in fs::read_dir("/sys/block").into_iter().flatten().flatten() {
            let file = fs::read_to_string(device.path().join("loop/backing_file"));
            all.extend(file.map(|file| format!("device {}", file.trim())));
        }
        network(&mut all);
        let mut things = BTreeMap::new();
        for thing in all {
            *things.entry(thing).or_insert(0) += 1;
        }
        let containerd = fs::read_to_string("/run/containerd.pid").unwrap_or_default();
        let descriptors = fs::read_dir(format!("/proc/{}/fd", containerd.trim())).map_or(0, Iterator::count);
        Self { things, descriptors }
    }

    /// How the host differs from this: what there is more of, and less of.
    fn differences(&self) -> Vec<String> {
        let now = Self::of_host();
        let mut differences = Vec::new();
        for (sign, one, other) in [('+', &now, self), ('-', self, &now)] {
            for (thing, count) in &one.things {
                let others = other.things.get(thing).copied().unwrap_or_default();
                // containerd's garbage collector comes when it likes: an earlier pod's snapshot may have been there still.
                let is_late = sign == '-' && thing.contains(SNAPSHOTS);
                if *count > others && !is_late {
                    differences.push(format!("{sign}{} {thing}", count - others));
                }
            }
        }
        // containerd may have fewer, after its clients have gone.
        if now.descriptors > self.descriptors + CLIENTS {
            differences.push(format!(
                "containerd has {} descriptors instead of {}",
                now.descriptors, self.descriptors
            ));
        }
        differences
    }

    /// What differs after `limit`, or nothing as soon as nothing does, but for what is known to.
    pub fn differs_after(&self, limit: Duration, known: &BTreeSet<String>) -> Vec<String> {
        let mut differences = Vec::new();
        until(limit, || {
            differences = self.differences();
            differences.retain(|difference| !known.contains(difference));
            differences.is_empty().then_some(())
        });
        differences
    }
}

/// Processes by their programs, and the namespaces in which any is.
fn processes(all: &mut Vec<String>) {
    let mut namespaces = BTreeMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_name().to_str().is_none_or(|name| !name.bytes().all(|byte| byte.is_ascii_digit())) {
            continue;
        }
        // A thread of the kernel's has no program. The kernel makes and ends them as it likes.
        let Ok(program) = fs::read_link(path.join("exe")) else { continue };
        let program = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if OWN.iter().any(|own| program.starts_with(own)) {
            continue;
        }
        for kind in ["cgroup", "ipc", "mnt", "net", "pid", "uts"] {
            if let Ok(namespace) = fs::read_link(path.join("ns").join(kind)) {
                namespaces.insert(namespace, kind);
            }
        }
        all.push(format!("process {program}"));
    }
    all.extend(namespaces.values().map(|kind| format!("namespace {kind}")));
}

/// Interfaces with their filters, and rules: of the host, for what is in a pod's namespace goes with that, and namespaces are
/// mounts under `/run/netns`, or processes'.
fn network(all: &mut Vec<String>) {
    for line in [
        "ip -o link show",
        "ip rule show",
        "ip route show table all",
        "tc qdisc show",
        "tc filter show dev cni0 ingress",
        "iptables-save",
        "ip6tables-save",
    ] {
        let (program, arguments) = line.split_once(' ').unwrap_or((line, ""));
        let done = Run::new(program).args(arguments.split_whitespace()).run();
        let text = done.text();
        // Not when it was said, nor how often a rule was met.
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        all.extend(lines.map(|said| format!("{line}: {}", without_counters(said))));
    }
}

fn without_counters(line: &str) -> String {
    let line = line.split(" [").next().unwrap_or_default();
    // Interfaces are numbered for ever; the bridge is up or not as it has somebody.
    let line = line.split_once(": cni0: ").map_or(line, |_| "cni0");
    let words = line.split(' ').filter(|word| !matches!(*word, "linkdown" | "dead"));
    words.collect::<Vec<_>>().join(" ")
}

fn search(folder: &Path, depth: usize, all: &mut Vec<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let name = path.to_string_lossy().into_owned();
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let is_kept =
            NO_POD.iter().any(|part| name.contains(part)) || KEPT.iter().any(|end| name.ends_with(end));
        if is_kept || name.starts_with("/sys/") && !is_folder {
            continue;
        }
        if depth > 1 && is_folder {
            search(&path, depth - 1, all);
        }
        all.push(format!("file {name}"));
    }
}
