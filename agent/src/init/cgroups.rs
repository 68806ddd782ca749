//! The guest's cgroup tree: `/agent` for the agent and its spawner, `/pod` above every container.

use std::fs;
use std::path::Path;

use crate::container::devices;
use crate::error::{Attempt, Result};
use crate::{log, paths};

/// Memory, in bytes, that containers cannot push the agent out of.
const AGENT_MEMORY: u64 = 32 << 20;

/// How deep cgroups that containers make may lie below one another: deeper than container managers go, and not so deep that
/// walking them is a matter of its own.
const DEPTH: u64 = 64;
/// How many cgroups a pod may have.
const CGROUPS: u64 = 1 << 14;

/// Makes the tree, moves the agent to its place and reserves it processes and memory.
pub(super) fn prepare() -> Result<()> {
    enable_controllers(Path::new(paths::CGROUP))?;
    for dir in [paths::AGENT_CGROUP, paths::POD_CGROUP] {
        fs::create_dir(dir).attempt(|| format!("create cgroup {dir}"))?;
    }
    fs::write(format!("{}/cgroup.procs", paths::AGENT_CGROUP), "0")
        .attempt(|| "move the agent to its cgroup".to_owned())?;
    enable_controllers(Path::new(paths::POD_CGROUP))?;
    devices::keep_from_disks(Path::new(paths::POD_CGROUP))?;

    // Best effort from here: without these limits containers still run.
    set(paths::AGENT_CGROUP, "memory.min", AGENT_MEMORY);
    set(paths::POD_CGROUP, "cgroup.max.depth", DEPTH);
    set(paths::POD_CGROUP, "cgroup.max.descendants", CGROUPS);
    set(
        paths::POD_CGROUP,
        "pids.max",
        pod_processes(read_number("kernel/pid_max"), read_number("kernel/threads-max")),
    );
    let system = rustix::system::sysinfo();
    let total = system.totalram.saturating_mul(u64::from(system.mem_unit));
    set(paths::POD_CGROUP, "memory.max", pod_memory(total));
    Ok(())
}

/// Hands every controller the kernel has down to a cgroup's children.
fn enable_controllers(cgroup: &Path) -> Result<()> {
    let available = cgroup.join("cgroup.controllers");
    let available = fs::read_to_string(&available).attempt(|| format!("read {}", available.display()))?;
    let file = cgroup.join("cgroup.subtree_control");
    let all: Vec<String> = available.split_whitespace().map(|controller| format!("+{controller}")).collect();
    if fs::write(&file, all.join(" ")).is_ok() {
        return Ok(());
    }
    // One that cannot be enabled spoils the whole write.
    for controller in all {
        if let Err(error) = fs::write(&file, &controller) {
            log!("cannot write {controller} to {}: {error}", file.display());
        }
    }
    Ok(())
}

fn set(cgroup: &str, file: &str, value: u64) {
    if let Err(error) = fs::write(format!("{cgroup}/{file}"), value.to_string()) {
        log!("cannot set {file} of {cgroup} to {value}: {error}");
    }
}

fn read_number(sysctl: &str) -> u64 {
    fs::read_to_string(format!("/proc/sys/{sysctl}"))
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(4096)
}

/// Processes all containers together may have: what the kernel allows less room for the agent, its spawner and
/// the kernel's own threads.
fn pod_processes(pid_max: u64, threads_max: u64) -> u64 {
    let limit = pid_max.min(threads_max);
    limit - (limit / 8).clamp(128, 1024).min(limit / 2)
}

/// Memory all containers together may use, so that it is their cgroup and not the guest that runs out.
fn pod_memory(total: u64) -> u64 {
    total - (AGENT_MEMORY / 2 + total / 64).min(total / 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agent_keeps_room_for_processes() {
        assert_eq!(pod_processes(32768, 4096), 4096 - 512);
        assert_eq!(pod_processes(4_194_304, 1_000_000), 1_000_000 - 1024);
        assert_eq!(pod_processes(100, 100), 50);
    }

    #[test]
    fn the_agent_keeps_memory() {
        assert_eq!(pod_memory(512 << 20), (512 << 20) - (24 << 20));
        assert_eq!(pod_memory(32 << 20), 24 << 20);
    }
}
