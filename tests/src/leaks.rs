//! What a pod leaves on the host, and the proof that it is gone.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::Host;
use crate::wait::until;

/// Where a pod lives on the host, noted while it runs and looked for after its removal.
#[derive(Debug, Clone, Default)]
pub struct Traces {
    /// Sandbox and container ids.
    ids: BTreeSet<String>,
    /// The pod's uid, which its cgroups name.
    uid: String,
    /// Process and its start time in clock ticks: together they name a process for ever.
    processes: BTreeSet<(u32, String)>,
    /// The pod's network namespace.
    netns: Option<PathBuf>,
    /// The shim's socket, whose name is a digest.
    socket: Option<PathBuf>,
}

impl Traces {
    /// Notes where the sandbox `id` of the pod `uid` lives.
    #[must_use]
    pub fn of_sandbox(id: &str, uid: &str) -> Self {
        let (netns, socket) = (netns(id), state_of(id, "socket"));
        let mut traces = Self { netns, socket, uid: uid.to_owned(), ..Self::default() };
        traces.add_id(id);
        traces
    }

    /// Adds the id of a container, or of anything that names itself in paths and command lines.
    pub fn add_id(&mut self, id: &str) {
        self.ids.insert(id.to_owned());
    }

    /// Notes the processes that serve the sandbox now: shim, machine, and for other runtimes the containers.
    pub fn note_processes(&mut self) {
        for pid in pids() {
            if self.owns(pid) {
                self.processes.extend(start_time(pid).map(|start| (pid, start)));
            }
        }
    }

    /// The pod's network namespace, as a path.
    #[must_use]
    pub fn netns(&self) -> Option<&Path> {
        self.netns.as_deref()
    }

    /// Panics when something of the pod is still there after a minute.
    #[track_caller]
    pub fn assert_gone(&self) {
        let mut left = Vec::new();
        let clean = until(Duration::from_secs(60), || {
            left = self.left();
            left.is_empty().then_some(())
        });
        assert!(clean.is_some(), "left behind by a removed pod:\n  {}", left.join("\n  "));
    }

    /// Panics when containerd still has something open, a minute later, that names the pod or one of its containers.
    #[track_caller]
    pub fn assert_closed(&self) {
        let mut open = Vec::new();
        let closed = until(Duration::from_secs(60), || {
            let containerd = fs::read_to_string("/run/containerd.pid").unwrap_or_default();
            let descriptors =
                fs::read_dir(format!("/proc/{}/fd", containerd.trim())).expect("containerd runs");
            let links = descriptors.flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
            open = links.map(|link| link.display().to_string()).filter(|link| self.names(link)).collect();
            open.is_empty().then_some(())
        });
        assert!(closed.is_some(), "containerd has this open of a removed pod:\n  {}", open.join("\n  "));
    }

    /// Whatever of the pod is still there.
    #[must_use]
    pub fn left(&self) -> Vec<String> {
        let mut left = Vec::new();
        for (pid, start) in &self.processes {
            if start_time(*pid).as_ref() == Some(start) {
                left.push(format!("process {pid}: {}", command_line(*pid)));
            }
        }
        for pid in pids() {
            if self.owns(pid) {
                left.push(format!("process {pid}: {}", command_line(pid)));
            }
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        left.extend(mounts.lines().filter(|line| self.names(line)).map(|line| format!("mount {line}")));
        let files = self.netns.iter().chain(&self.socket);
        left.extend(files.filter(|path| path.exists()).map(|path| format!("{}", path.display())));
        for (root, depth) in [
            ("/sys/fs/cgroup", 6),
            ("/run/ravelin", 2),
            ("/var/lib/ravelin/scratch", 1),
            ("/run/containerd", 4),
            ("/run/containerd-1.6", 4),
            ("/run/containerd-2.3", 4),
            ("/var/lib/containerd/io.containerd.runtime.v2.task", 2),
            ("/var/lib/containerd/io.containerd.grpc.v1.cri", 2),
            ("/var/lib/cni", 3),
        ] {
            self.search(Path::new(root), depth, &mut left);
        }
        // An address is taken by a file of its name, which says by whom.
        for lease in fs::read_dir("/var/lib/cni/networks/pods").into_iter().flatten().flatten() {
            if fs::read_to_string(lease.path()).is_ok_and(|owner| self.names(&owner)) {
                left.push(format!("address {}", lease.path().display()));
            }
        }
        left.sort();
        left.dedup();
        left
    }

    fn owns(&self, pid: u32) -> bool {
        self.ids.iter().any(|id| belongs(pid, id, &self.uid))
    }

    fn names(&self, text: &str) -> bool {
        self.ids.iter().any(|id| text.contains(id.as_str()))
    }

    fn search(&self, folder: &Path, depth: usize, left: &mut Vec<String>) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            if self.names(&entry.file_name().to_string_lossy()) {
                left.push(format!("{}", entry.path().display()));
            } else if depth > 1 && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                self.search(&entry.path(), depth - 1, left);
            }
        }
    }
}

/// Every process of the host.
pub(crate) fn pids() -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// A process's command line with spaces between the arguments; empty once it has ended.
pub(crate) fn command_line(pid: u32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ").trim_end().to_owned()
}

/// A process of `program` that serves the sandbox `id` of the pod `uid`.
pub(crate) fn process(id: &str, uid: &str, program: &str) -> Option<u32> {
    pids().into_iter().find(|&pid| {
        belongs(pid, id, uid) && command_line(pid).split(' ').any(|word| word.ends_with(program))
    })
}

/// Everything of any pod that is on the host: for a moment at which there is no pod.
pub(crate) fn of_any_pod() -> Vec<String> {
    let mut left = Vec::new();
    for pid in pids() {
        let line = command_line(pid);
        let ours = ["containerd-shim-", "ravelin-vmm", "ravelin-fs", "mkfs.erofs", "mkfs.ext4"];
        if ours.iter().any(|program| line.contains(program)) {
            left.push(format!("process {pid}: {line}"));
        }
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let ours = [
        "/run/netns/",
        "io.containerd.runtime.v2.task",
        "io.containerd.grpc.v1.cri",
        "/run/ravelin",
        "/var/lib/ravelin/",
    ];
    left.extend(
        mounts.lines().filter(|line| ours.iter().any(|part| line.contains(part))).map(ToOwned::to_owned),
    );
    for folder in [
        "/run/netns",
        "/run/ravelin",
        "/var/lib/ravelin/scratch",
        // Shims' sockets and bundles.
        "/run/containerd/s",
        "/run/containerd/io.containerd.runtime.v2.task/k8s.io",
        "/run/containerd/io.containerd.sandbox.controller.v1.shim/k8s.io",
    ] {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        left.extend(entries.map(|entry| format!("{}", entry.path().display())));
    }
    // The pods' own cgroups are the kubelet's to remove, that is the tests'; what is below them is not.
    let roots: &[&str] = if Host::has_cgroup2() { &[""] } else { &["cpu", "memory", "pids"] };
    for root in roots.iter().map(|root| Path::new("/sys/fs/cgroup").join(root)) {
        let mut cgroups: Vec<_> =
            folders(&root.join("kubepods")).iter().flat_map(|pod| folders(pod)).collect();
        // Where pods are that name none.
        cgroups.extend(folders(&root.join("k8s.io")));
        left.extend(cgroups.iter().map(|cgroup| format!("{}", cgroup.display())));
    }
    for device in fs::read_dir("/sys/block").into_iter().flatten().flatten() {
        let file = fs::read_to_string(device.path().join("loop/backing_file")).unwrap_or_default();
        if ["/ravelin/", "/containerd"].iter().any(|part| file.contains(part)) {
            left.push(format!("device {} of {}", device.file_name().display(), file.trim()));
        }
    }
    let links = fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    let links = links.map(|link| link.file_name().to_string_lossy().into_owned());
    left.extend(
        links
            .filter(|name| name.starts_with("veth") || name.starts_with("tap"))
            .map(|name| format!("interface {name}")),
    );
    left
}

fn folders(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

/// Whether the process serves the sandbox or container `id` of the pod `uid`: it is in its cgroup, or it is a shim
/// that names it.
fn belongs(pid: u32, id: &str, uid: &str) -> bool {
    let line = command_line(pid);
    let program = line.split(' ').next().unwrap_or_default();
    let shim = program.contains("containerd-shim-") && line.contains(id);
    let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    shim || cgroup.contains(id) || cgroup.contains(uid)
}

/// When the process started, in clock ticks since boot; none for a process that has ended, zombie or not.
fn start_time(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything; the fields after it may not.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    (*fields.first()? != "Z").then_some(())?;
    fields.get(19).map(|&start| start.to_owned())
}

fn netns(sandbox: &str) -> Option<PathBuf> {
    for state in ["/run/containerd", "/run/containerd-1.6", "/run/containerd-2.3"] {
        let spec = format!("{state}/io.containerd.runtime.v2.task/k8s.io/{sandbox}/config.json");
        let Ok(text) = fs::read_to_string(spec) else { continue };
        let spec: serde_json::Value = serde_json::from_str(&text).ok()?;
        let namespaces = spec.pointer("/linux/namespaces")?.as_array()?;
        let network = namespaces.iter().find(|namespace| namespace["type"] == "network")?;
        return network["path"].as_str().map(PathBuf::from);
    }
    // A pod of the sandbox API has no specification; the shim knows.
    state_of(sandbox, "netns")
}

/// A path that the shim of this sandbox has written down.
fn state_of(sandbox: &str, what: &str) -> Option<PathBuf> {
    let state = fs::read_to_string(format!("/run/ravelin/{sandbox}/state.json")).ok()?;
    let state: serde_json::Value = serde_json::from_str(&state).ok()?;
    state[what].as_str().map(PathBuf::from)
}
