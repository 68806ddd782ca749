//! What the process may take of the node.

use rustix::process::{Resource, Rlimit};

use super::{JailError, failed};

/// Bytes of the pod's memory for each descriptor: one for each file that the guest knows, and for each that it has open. Such a
/// file takes about 1.5 KiB of the kernel's memory, which is charged to the pod: a tenth of what the pod has. And unless systemd
/// has lifted it, the node's table of open files (`fs.file-max`) has a place for each 10 KiB of the node's memory, 1.6 million
/// on one of 16 GiB, so that no pod takes more of it than its share.
const MEMORY_EACH: u64 = 16 << 10;
/// The least, of which 100 MiB of the kernel's memory come: trees of some size are served to small pods too.
const LEAST: u64 = 1 << 16;
/// The most. The kernel allows no process more, unless the node's administrator has changed that (`fs.nr_open`).
const MOST: u64 = 1 << 20;
/// Where nobody says what memory the pod has: 400 MiB of the kernel's, and a sixth of the places of a node of 16 GiB.
const OTHERWISE: u64 = 1 << 18;

/// Descriptors that the process may have, by the limit of the cgroup that it is born in. To be asked before the process leaves the
/// node's file systems.
pub(super) fn descriptors() -> u64 {
    own_memory_limit().map_or(OTHERWISE, |bytes| (bytes / MEMORY_EACH).clamp(LEAST, MOST))
}

/// Bytes of memory that this process's cgroup may use; `None` without a limit, and in cgroup v1, where the process is moved into
/// the pod's some time after its birth.
fn own_memory_limit() -> Option<u64> {
    let cgroups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = cgroups.lines().find_map(|line| line.strip_prefix("0::"))?;
    std::fs::read_to_string(format!("/sys/fs/cgroup{path}/memory.max")).ok()?.trim().parse().ok()
}

/// Limits descriptors to so many, and what else the process does not need to nothing.
pub(super) fn set(descriptors: u64) -> Result<(), JailError> {
    let hard = rustix::process::getrlimit(Resource::Nofile).maximum;
    let set = |resource, value| {
        rustix::process::setrlimit(resource, Rlimit { current: Some(value), maximum: Some(value) })
    };
    // A node whose administrator allows less decides.
    if set(Resource::Nofile, descriptors).is_err() {
        let hard = hard.map_or(descriptors, |hard| hard.min(descriptors));
        set(Resource::Nofile, hard).map_err(failed("set resource limits"))?;
    }
    [Resource::Core, Resource::Msgqueue, Resource::Memlock]
        .into_iter()
        .try_for_each(|resource| set(resource, 0))
        .map_err(failed("set resource limits"))
}
