//! The shim's own cgroup, beside its machine's in the pod's (cgroup v2): what it does for a pod is charged to the pod, for
//! which a RuntimeClass's overhead makes room, and not to containerd.
//!
//! The kubelet limits the CPU time of the pod's cgroup. Where that leaves nothing beside the machine's, the shim stays in
//! containerd's cgroup: a guest that uses all its time would keep it from being looked at and ended.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use cgroups_rs::fs::hierarchies;

use super::path::normalize;
use super::remove;

/// CPU time that the pod's cgroup has to leave beside the machine's, in thousandths of a CPU.
const ROOM: u64 = 50;
/// Digits of the sandbox's id in the cgroup's name. cAdvisor takes a name with 64 of them for a container's.
const DIGITS: usize = 12;

/// `cgroup.procs` of the cgroup that the shim was in, for programs whose work is not the pod's.
static CONTAINERDS: OnceLock<OwnedFd> = OnceLock::new();

/// The cgroup, with the shim in it.
#[derive(Debug)]
pub struct OwnCgroup {
    directory: PathBuf,
    before: PathBuf,
}

impl OwnCgroup {
    /// Makes the cgroup and moves this process into it. `None` where there is no room for it beside a machine that may use
    /// `machine_millis` thousandths of a CPU, and on cgroup v1.
    ///
    /// The kernel may have to wait for all processes of the node: blocks.
    ///
    /// # Errors
    /// When the kernel refuses; the process stays where it is.
    pub fn enter(cgroups_path: &str, sandbox_id: &str, machine_millis: u32) -> io::Result<Option<Self>> {
        let hierarchy = hierarchies::auto();
        let Some(directory) = directory(cgroups_path, sandbox_id).filter(|_| hierarchy.v2()) else {
            return Ok(None);
        };
        let pod = directory.parent().unwrap_or(&directory);
        if !leaves_room(&fs::read_to_string(pod.join("cpu.max"))?, machine_millis) {
            return Ok(None);
        }
        let own = fs::read_to_string("/proc/self/cgroup")?;
        let own = own.lines().find_map(|line| line.strip_prefix("0::/")).ok_or(io::ErrorKind::NotFound)?;
        let before = hierarchy.root().join(own);
        let processes = fs::OpenOptions::new().write(true).open(before.join(PROCESSES))?;
        fs::create_dir(&directory)?;
        let entered = Self { directory, before };
        if let Err(error) = move_to(&entered.directory) {
            entered.remove();
            return Err(error);
        }
        // Whoever was there first is the same shim's.
        let _ = CONTAINERDS.set(processes.into());
        Ok(Some(entered))
    }

    /// Moves this process back to where it was, or to the root where that is gone, and removes the cgroup. Blocks.
    pub fn leave(self) {
        let moved = move_to(&self.before).or_else(|_| move_to(&hierarchies::auto().root()));
        if let Err(error) = moved {
            tracing::warn!("cannot leave the pod's cgroup: {error}");
        }
        self.remove();
    }

    fn remove(&self) {
        if let Err(error) = fs::remove_dir(&self.directory) {
            tracing::warn!("cannot remove the shim's cgroup {}: {error}", self.directory.display());
        }
    }
}

/// Where a program enters containerd's cgroup, by writing "0" to this descriptor before it runs; none if it is there.
pub fn containerds() -> Option<RawFd> {
    CONTAINERDS.get().map(AsRawFd::as_raw_fd)
}

/// Removes the cgroup of a shim that is gone, if there is one.
///
/// # Errors
/// When it is still there after a few seconds.
pub async fn delete(cgroups_path: &str, sandbox_id: &str) -> io::Result<()> {
    match directory(cgroups_path, sandbox_id) {
        Some(directory) => remove::until_gone(&[directory]).await,
        None => Ok(()),
    }
}

const PROCESSES: &str = "cgroup.procs";

fn move_to(cgroup: &Path) -> io::Result<()> {
    fs::write(cgroup.join(PROCESSES), std::process::id().to_string())
}

fn directory(cgroups_path: &str, sandbox_id: &str) -> Option<PathBuf> {
    let path = normalize(cgroups_path).ok()?;
    let pod = Path::new(&path).parent()?;
    let digits = sandbox_id.get(..DIGITS).unwrap_or(sandbox_id);
    Some(hierarchies::auto().root().join(pod).join(format!("ravelin-shim-{digits}")))
}

/// Whether a cgroup with this `cpu.max` leaves time beside what its machine may use.
fn leaves_room(cpu_max: &str, machine_millis: u32) -> bool {
    let mut numbers = cpu_max.split_whitespace().map(str::parse::<u64>);
    // "max" is no number.
    let (Some(Ok(quota)), Some(Ok(period))) = (numbers.next(), numbers.next()) else { return true };
    quota.saturating_mul(1000) / period.max(1) >= u64::from(machine_millis) + ROOM
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shim_is_where_the_pod_leaves_it_time() {
        for (cpu_max, machine_millis, room) in [
            ("max 100000\n", 250, true),
            ("25000 100000\n", 250, false),
            ("29000 100000\n", 250, false),
            ("30000 100000\n", 250, true),
            ("60000 200000\n", 250, true),
            ("400000 100000\n", 4000, false),
        ] {
            assert_eq!(leaves_room(cpu_max, machine_millis), room, "{cpu_max} {machine_millis}");
        }
    }

    #[test]
    fn its_name_is_no_containers() {
        let id = "0123456789abcdef".repeat(4);
        let path = directory(&format!("/kubepods/burstable/pod1/{id}"), &id).unwrap();
        assert!(path.ends_with("kubepods/burstable/pod1/ravelin-shim-0123456789ab"), "{}", path.display());
        assert!(directory("/a/b", "short").unwrap().ends_with("a/ravelin-shim-short"));
    }
}
