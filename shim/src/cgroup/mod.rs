//! The pod's cgroup, in which its machine runs.
//!
//! The kubelet limits the pod through the parent of this cgroup and reads the pod's usage there; the machine's process
//! is put below it, where containerd would have put the pause container. Works on cgroup v2, and on v1.

mod counters;
pub mod oom;
mod path;
mod remove;
#[cfg(test)]
mod tests;

use std::error::Error as _;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use cgroups_rs::CgroupPid;
use cgroups_rs::fs::cpu::CpuController;
use cgroups_rs::fs::error::Error;
use cgroups_rs::fs::memory::MemController;
use cgroups_rs::fs::pid::PidController;
use cgroups_rs::fs::{Cgroup, Controller, MaxValue, hierarchies};
use ravelin_proto::agent::StatsResponse;
use rustix::fs::{Mode, OFlags};

/// The v1 hierarchies a machine is put into.
const V1_CONTROLLERS: [&str; 6] = ["blkio", "cpu", "cpuacct", "cpuset", "memory", "pids"];

/// A cgroup that could not be handled.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The path in the OCI spec cannot be used.
    #[error("{path:?} is no cgroup path")]
    Path {
        /// The path.
        path: String,
    },
    /// An operation failed.
    #[error("cannot {what} the pod's cgroup {path}: {reason}")]
    Operation {
        /// What was attempted.
        what: &'static str,
        /// The cgroup.
        path: String,
        /// Why, as a chain.
        reason: String,
    },
}

/// What the machine's process may use. What is `None` is left to the cgroups above.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Limits {
    /// CPU time in each period, in microseconds.
    pub cpu_quota_us: Option<i64>,
    /// The period, in microseconds.
    pub cpu_period_us: u64,
    /// Weight among its siblings, as cgroup v1 counts it (2 to 262144).
    pub cpu_shares: Option<u64>,
    /// Bytes: the guest's memory and what the machine itself needs.
    pub memory_bytes: Option<u64>,
    /// Threads that the machine and the file server may have. A cgroup without the pids controller leaves that to the machine's own limit.
    pub threads: Option<u64>,
}

/// A pod's cgroup.
#[derive(Debug, Clone)]
pub struct PodCgroup {
    path: String,
}

impl PodCgroup {
    /// Makes the cgroup that an OCI spec's `linux.cgroupsPath` names and sets its limits.
    ///
    /// `slice:prefix:name` is the path that systemd would give the scope; the scope is not announced to systemd.
    ///
    /// # Errors
    /// When the path makes no sense or the kernel refuses; the cgroup is removed again then.
    pub fn create(cgroups_path: &str, limits: &Limits) -> Result<Self, CgroupError> {
        let path = path::normalize(cgroups_path)?;
        let cgroup = Self { path };
        let handle = cgroup.handle();
        let made = handle
            .create()
            .map_err(|error| cgroup.failed("make", &error))
            .and_then(|()| cgroup.limit(&handle, limits));
        if let Err(error) = made {
            let _ = remove::once(&cgroup.directories());
            return Err(error);
        }
        Ok(cgroup)
    }

    /// The cgroup that [`PodCgroup::create`] made for this path.
    ///
    /// # Errors
    /// When the path makes no sense.
    pub fn open(cgroups_path: &str) -> Result<Self, CgroupError> {
        Ok(Self { path: path::normalize(cgroups_path)? })
    }

    /// Sets limits anew; what is `None` stays as it is.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set(&self, limits: &Limits) -> Result<(), CgroupError> {
        self.limit(&self.handle(), limits)
    }

    /// The cgroup's directory, for a process to be born in; `None` on cgroup v1, which has several and can do no such thing.
    ///
    /// # Errors
    /// When there is no such cgroup.
    pub fn birthplace(&self) -> Result<Option<OwnedFd>, CgroupError> {
        let hierarchy = hierarchies::auto();
        if !hierarchy.v2() {
            return Ok(None);
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match rustix::fs::open(hierarchy.root().join(&self.path), flags, Mode::empty()) {
            Ok(directory) => Ok(Some(directory)),
            Err(errno) => Err(CgroupError::Operation {
                what: "open",
                path: self.path.clone(),
                reason: errno.to_string(),
            }),
        }
    }

    /// Puts a process, with all its threads, into the cgroup.
    ///
    /// # Errors
    /// When the process is gone or the kernel refuses.
    pub fn add(&self, pid: u32) -> Result<(), CgroupError> {
        self.handle()
            .add_task_by_tgid(CgroupPid::from(u64::from(pid)))
            .map_err(|error| self.failed("put a process of the pod into", &error))
    }

    /// Kills what is left in the cgroup and removes it; may be called again.
    ///
    /// # Errors
    /// When it is still there after a few seconds.
    pub async fn delete(&self) -> Result<(), CgroupError> {
        remove::until_gone(&self.directories()).await.map_err(|error| CgroupError::Operation {
            what: "remove",
            path: self.path.clone(),
            reason: error.to_string(),
        })
    }

    /// The least memory that a cgroup above this one allows, in bytes; `None` where none has a limit.
    ///
    /// The kubelet limits a pod there, by its containers' limits and the RuntimeClass's overhead.
    #[must_use]
    pub fn memory_allowed_above(&self) -> Option<u64> {
        let hierarchy = hierarchies::auto();
        let file = if hierarchy.v2() { "memory.max" } else { "memory.limit_in_bytes" };
        let handle = self.handle();
        let directory = handle.controller_of::<MemController>()?.path();
        let above = directory.ancestors().skip(1).take_while(|above| above.starts_with(hierarchy.root()));
        // No limit is a word in v2, and a number near 2^63 in v1.
        let limit = |above: &Path| std::fs::read_to_string(above.join(file)).ok()?.trim().parse().ok();
        above.filter_map(limit).filter(|bytes| *bytes < 1 << 62).min()
    }

    /// What the pod uses on the node.
    ///
    /// # Errors
    /// On cgroup v1.
    pub fn counters(&self) -> Result<StatsResponse, CgroupError> {
        let hierarchy = hierarchies::auto();
        if !hierarchy.v2() {
            return Err(CgroupError::Operation {
                what: "read the counters of",
                path: self.path.clone(),
                reason: "they are read on cgroup v2 only".to_owned(),
            });
        }
        Ok(counters::read(&hierarchy.root().join(&self.path)))
    }

    /// Whether the node's kernel has killed a process of the cgroup for memory.
    #[must_use]
    pub fn oom_killed(&self) -> bool {
        let file = if hierarchies::auto().v2() { "memory.events" } else { "memory.oom_control" };
        let handle = self.handle();
        let Some(memory) = handle.controller_of::<MemController>() else { return false };
        let events = std::fs::read_to_string(memory.path().join(file)).unwrap_or_default();
        let kills = events.lines().find_map(|line| line.strip_prefix("oom_kill "));
        kills.is_some_and(|kills| kills.trim() != "0")
    }

    fn handle(&self) -> Cgroup {
        let hierarchy = hierarchies::auto();
        if hierarchy.v2() {
            Cgroup::load(hierarchy, &self.path)
        } else {
            let controllers = V1_CONTROLLERS.map(str::to_owned).to_vec();
            Cgroup::load_with_specified_controllers(hierarchy, &self.path, controllers)
        }
    }

    /// The cgroup's directories: one in v2, one for each hierarchy in v1.
    fn directories(&self) -> Vec<PathBuf> {
        let hierarchy = hierarchies::auto();
        if hierarchy.v2() {
            return vec![hierarchy.root().join(&self.path)];
        }
        let handle = self.handle();
        let mut all: Vec<_> =
            handle.subsystems().iter().map(|s| s.to_controller().path().to_owned()).collect();
        all.sort();
        all.dedup();
        all
    }

    fn limit(&self, handle: &Cgroup, limits: &Limits) -> Result<(), CgroupError> {
        let v2 = handle.v2();
        if let Some(cpu) = handle.controller_of::<CpuController>() {
            let failed = |error| self.failed("limit the CPU time of", &error);
            if let Some(shares) = limits.cpu_shares {
                cpu.set_shares(if v2 { weight(shares) } else { shares }).map_err(failed)?;
            }
            if let Some(quota) = limits.cpu_quota_us {
                let set = if v2 {
                    cpu.set_cfs_quota_and_period(Some(quota), Some(limits.cpu_period_us))
                } else {
                    cpu.set_cfs_period(limits.cpu_period_us).and_then(|()| cpu.set_cfs_quota(quota))
                };
                match set {
                    // In v1 a cgroup may not be allowed more than its parent. Then the parent's limit is the one that
                    // counts.
                    Err(error) if !v2 => tracing::warn!("{}", self.failed("limit the CPU time of", &error)),
                    other => other.map_err(failed)?,
                }
            }
        } else if limits.cpu_quota_us.is_some() {
            return Err(self.missing("cpu"));
        }
        if let Some(bytes) = limits.memory_bytes {
            let memory = handle.controller_of::<MemController>().ok_or_else(|| self.missing("memory"))?;
            let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
            memory.set_limit(bytes).map_err(|error| self.failed("limit the memory of", &error))?;
        }
        if let Some(threads) = limits.threads
            && let Some(pids) = handle.controller_of::<PidController>()
            && pids.path().join("pids.max").exists()
        {
            let most = MaxValue::Value(i64::try_from(threads).unwrap_or(i64::MAX));
            pids.set_pid_max(most).map_err(|error| self.failed("limit the threads of", &error))?;
        }
        Ok(())
    }

    fn missing(&self, controller: &str) -> CgroupError {
        CgroupError::Operation {
            what: "limit",
            path: self.path.clone(),
            reason: format!("this node has no {controller} cgroup controller"),
        }
    }

    fn failed(&self, what: &'static str, error: &Error) -> CgroupError {
        let mut reason = error.to_string();
        let mut source = error.source();
        while let Some(error) = source {
            reason = format!("{reason}: {error}");
            source = error.source();
        }
        CgroupError::Operation { what, path: self.path.clone(), reason }
    }
}

/// Removes the cgroup of a pod whose shim is gone; succeeds when there is none.
///
/// # Errors
/// As [`PodCgroup::delete`].
pub async fn delete(cgroups_path: &str) -> Result<(), CgroupError> {
    PodCgroup::open(cgroups_path)?.delete().await
}

/// cgroup v2's weight (1 to 10000) for v1's shares (2 to 262144), as runc converts them.
fn weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}
