//! The first milliseconds of the guest: from the kernel's `/init` to a system the agent can serve.

pub mod cgroups;
pub mod mark;
mod root;
mod stdio;

use std::fs;
use std::io;
use std::path::Path;

use rustix::mount::MountFlags;

use crate::error::{Attempt, Result};
use crate::{log, network, paths, volumes};

/// Prepares the guest: root, kernel file systems, cgroups, scratch disk, loopback, limits.
///
/// # Errors
///
/// When the guest cannot run containers without what failed; what it can do without is only logged.
pub fn prepare() -> Result<()> {
    root::enter()?;
    stdio::open();
    for dir in [
        paths::LAYERS,
        paths::BLOCK_VOLUMES,
        paths::SCRATCH,
        paths::VOLUMES,
        paths::MEMORY_DIRS,
        paths::SHARED_DIRS,
        paths::RUNTIME,
    ] {
        fs::create_dir_all(dir).attempt(|| format!("create {dir}"))?;
    }
    fs::create_dir_all(paths::CONTAINERS).attempt(|| format!("create {}", paths::CONTAINERS))?;
    cgroups::prepare()?;
    mount_scratch()?;
    volumes::prepare(Path::new(paths::VOLUMES), &Path::new(paths::SCRATCH).join("logs"))?;
    if let Err(error) = network::loopback_up() {
        log!("cannot bring the loopback interface up: {error}");
    }
    protect_from_oom();
    raise_limits();
    Ok(())
}

/// Mounts the scratch disk, when the machine has one, and makes its directories.
fn mount_scratch() -> Result<()> {
    if Path::new(paths::SCRATCH_DISK).exists() {
        rustix::mount::mount(paths::SCRATCH_DISK, paths::SCRATCH, c"ext4", MountFlags::NOATIME, None)
            .attempt(|| format!("mount {} on {}", paths::SCRATCH_DISK, paths::SCRATCH))?;
    }
    for dir in ["containers", "emptydir", "trash"] {
        let path = Path::new(paths::SCRATCH).join(dir);
        fs::create_dir_all(&path).attempt(|| format!("create {}", path.display()))?;
    }
    Ok(())
}

/// The kernel's OOM killer must never choose the agent, nor, before its request is known, what it forks.
fn protect_from_oom() {
    if let Err(error) = fs::write("/proc/self/oom_score_adj", "-1000") {
        log!("cannot protect the agent from the OOM killer: {error}");
    }
}

/// Containers inherit these unless their spec sets them: what containerd's service gives runc on a node.
fn raise_limits() {
    const FILES: u64 = 1 << 20;
    let set = |what, soft: u64, hard: u64| {
        let limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
        // SAFETY: `limit` is a valid rlimit for the call's duration.
        if unsafe { libc::setrlimit(what, &raw const limit) } != 0 {
            log!("cannot raise resource limit {what}: {}", io::Error::last_os_error());
        }
    };
    set(libc::RLIMIT_NOFILE, FILES, FILES);
    set(libc::RLIMIT_NPROC, libc::RLIM_INFINITY, libc::RLIM_INFINITY);
    // A program that crashes again and again must not fill the pod's disk, unless it raises its limit: a core dump is as large
    // as its memory.
    set(libc::RLIMIT_CORE, 0, libc::RLIM_INFINITY);
    // As distributions' kernels have it: with the headers of the files that are mapped, by which debuggers tell builds apart.
    if let Err(error) = std::fs::write("/proc/self/coredump_filter", "0x33") {
        log!("cannot choose what core dumps hold: {error}");
    }
}
