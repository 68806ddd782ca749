//! A container's cgroup, read and written as files.

use std::fs;
use std::io;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::time::Duration;

use libcgroups::common::{CgroupManager, ControllerOpt};
use libcgroups::v2::manager::Manager;
use oci_spec::runtime::LinuxResources;
use ravelin_proto::agent as api;
use rustix::fs::rmdir;
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::Instant;

use super::cgroup_tree;
use crate::error::{AgentError, Attempt, Result, chain};
use crate::paths;

/// A container's cgroup.
#[derive(Debug, Clone)]
pub struct Cgroup {
    id: String,
    path: PathBuf,
}

impl Cgroup {
    /// The cgroup of container `id`, whether or not it exists.
    #[must_use]
    pub fn of(id: &str) -> Self {
        Self { id: id.to_owned(), path: paths::container_cgroup(id) }
    }

    /// The one above every container.
    #[must_use]
    pub fn of_the_pod() -> Self {
        Self { id: "pod".to_owned(), path: paths::POD_CGROUP.into() }
    }

    /// One at a place of a test's.
    #[cfg(test)]
    pub(crate) fn at(id: &str, path: PathBuf) -> Self {
        Self { id: id.to_owned(), path }
    }

    /// Its directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes it.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn create(&self) -> Result<()> {
        fs::create_dir(&self.path).attempt(|| format!("create cgroup {}", self.path.display()))
    }

    /// Gives it to a user and a group, who may make cgroups in it and move their processes, and change nothing of its limits: the
    /// files that the kernel names for that (cgroups(7), "Delegation").
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn delegate(&self, user: u32, group: u32) -> Result<()> {
        const FILES: &str = "/sys/kernel/cgroup/delegate";
        let files = fs::read_to_string(FILES).attempt(|| format!("read {FILES}"))?;
        let give = |path: &Path| match chown(path, Some(user), Some(group)) {
            // Of a controller that is not there.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            given => given.attempt(|| format!("give {} to the pod's root", path.display())),
        };
        give(&self.path)?;
        files.lines().try_for_each(|file| give(&self.path.join(file)))
    }

    /// Applies limits.
    ///
    /// # Errors
    ///
    /// When a value is impossible or the kernel refuses it.
    pub fn update(&self, resources: &LinuxResources) -> Result<()> {
        let failed = |text: String| AgentError::Failed(format!("update the limits of {}: {text}", self.id));
        let manager =
            Manager::new(self.path.clone(), PathBuf::from("/")).map_err(|error| failed(chain(&error)))?;
        let options =
            ControllerOpt { resources, oom_score_adj: None, freezer_state: None, disable_oom_killer: false };
        manager.apply(&options).map_err(|error| failed(chain(&error)))
    }

    /// Kills every process in it.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn kill(&self) -> Result<()> {
        match fs::write(self.path.join("cgroup.kill"), "1") {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            done => done.attempt(|| format!("kill the processes of {}", self.id)),
        }
    }

    /// Sends a signal to every process in it.
    ///
    /// # Errors
    ///
    /// When the kernel refuses to list them.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        if signal == Signal::KILL {
            return self.kill();
        }
        for pid in self.pids()? {
            if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
                // One that has just ended needs no signal.
                let _ = kill_process(pid, signal);
            }
        }
        Ok(())
    }

    /// Processes in it and in cgroups below it.
    ///
    /// # Errors
    ///
    /// When the kernel refuses to list them.
    pub fn pids(&self) -> Result<Vec<u32>> {
        cgroup_tree::open(&self.path)
            .and_then(|cgroup| cgroup_tree::pids(&cgroup))
            .attempt(|| format!("list the processes of {}", self.id))
    }

    /// Freezes or thaws it, and waits until that is so, or until `deadline`.
    ///
    /// # Errors
    ///
    /// When the kernel refuses or the processes do not stop in time; they go on then.
    pub fn freeze(&self, frozen: bool, deadline: Instant) -> Result<()> {
        let word = if frozen { "1" } else { "0" };
        fs::write(self.path.join("cgroup.freeze"), word)
            .attempt(|| format!("change the frozen state of {}", self.id))?;
        while self.keyed("cgroup.events", "frozen") != Some(u64::from(frozen)) {
            if Instant::now() > deadline {
                let _ = fs::write(self.path.join("cgroup.freeze"), "0");
                return Err(AgentError::Failed(format!("the processes of {} do not stop", self.id)));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// How often the OOM killer struck in it and below.
    #[must_use]
    pub fn oom_kills(&self) -> u64 {
        self.keyed("memory.events", "oom_kill").unwrap_or(0)
    }

    /// Kills what is in it and removes it, with cgroups made below it.
    ///
    /// # Errors
    ///
    /// When processes are still there at `deadline`.
    pub fn remove(&self, deadline: Instant) -> Result<()> {
        loop {
            let cgroup = match cgroup_tree::open(&self.path) {
                Err(Errno::NOENT) => return Ok(()),
                cgroup => cgroup.attempt(|| format!("open the cgroup of {}", self.id))?,
            };
            let _ = fs::write(self.path.join("cgroup.freeze"), "0");
            self.kill()?;
            let removed = cgroup_tree::remove_below(&cgroup).and_then(|()| rmdir(&self.path));
            match removed {
                Ok(()) | Err(Errno::NOENT) => return Ok(()),
                Err(error) if Instant::now() > deadline => {
                    return Err(error).attempt(|| format!("remove the cgroup of {}", self.id));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    /// What the kernel counted.
    ///
    /// # Errors
    ///
    /// [`AgentError::NotFound`] when the cgroup is gone.
    pub fn stats(&self) -> Result<api::StatsResponse> {
        if !self.path.exists() {
            return Err(AgentError::NotFound(format!("container {} has no cgroup any more", self.id)));
        }
        let cpu = self.table("cpu.stat");
        let memory = self.table("memory.stat");
        let events = self.table("memory.events");
        let of = |table: &[(String, u64)], key: &str| {
            table.iter().find(|(name, _)| name == key).map_or(0, |(_, value)| *value)
        };
        Ok(api::StatsResponse {
            cpu: Some(api::CpuStats {
                usage_usec: of(&cpu, "usage_usec"),
                user_usec: of(&cpu, "user_usec"),
                system_usec: of(&cpu, "system_usec"),
                nr_periods: of(&cpu, "nr_periods"),
                nr_throttled: of(&cpu, "nr_throttled"),
                throttled_usec: of(&cpu, "throttled_usec"),
            }),
            memory: Some(api::MemoryStats {
                usage: self.number("memory.current", u64::MAX),
                usage_limit: self.number("memory.max", u64::MAX),
                swap_usage: self.number("memory.swap.current", u64::MAX),
                swap_limit: self.number("memory.swap.max", u64::MAX),
                events_low: of(&events, "low"),
                events_high: of(&events, "high"),
                events_max: of(&events, "max"),
                events_oom: of(&events, "oom"),
                events_oom_kill: of(&events, "oom_kill"),
                stat: memory.into_iter().collect(),
            }),
            pids_current: self.number("pids.current", 0),
            pids_limit: self.number("pids.max", 0),
            io: self.io(),
        })
    }

    fn io(&self) -> Vec<api::IoStats> {
        let text = fs::read_to_string(self.path.join("io.stat")).unwrap_or_default();
        text.lines().filter_map(parse_io).collect()
    }

    /// A file of one number, with `max` given for the word "max"; 0 if there is no such file.
    fn number(&self, file: &str, max: u64) -> u64 {
        match fs::read_to_string(self.path.join(file)) {
            Ok(text) if text.trim() == "max" => max,
            Ok(text) => text.trim().parse().unwrap_or(0),
            Err(_) => 0,
        }
    }

    /// A file of "key number" lines.
    fn table(&self, file: &str) -> Vec<(String, u64)> {
        let text = fs::read_to_string(self.path.join(file)).unwrap_or_default();
        text.lines()
            .filter_map(|line| line.split_once(' '))
            .filter_map(|(key, value)| Some((key.to_owned(), value.parse().ok()?)))
            .collect()
    }

    fn keyed(&self, file: &str, key: &str) -> Option<u64> {
        self.table(file).into_iter().find(|(name, _)| name == key).map(|(_, value)| value)
    }
}

/// A line of `io.stat`: `254:16 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0`.
fn parse_io(line: &str) -> Option<api::IoStats> {
    let mut words = line.split_whitespace();
    let (major, minor) = words.next()?.split_once(':')?;
    let mut stats =
        api::IoStats { major: major.parse().ok()?, minor: minor.parse().ok()?, ..Default::default() };
    for (key, value) in words.filter_map(|word| word.split_once('=')) {
        let value = value.parse().unwrap_or(0);
        match key {
            "rbytes" => stats.rbytes = value,
            "wbytes" => stats.wbytes = value,
            "rios" => stats.rios = value,
            "wios" => stats.wios = value,
            _ => {}
        }
    }
    Some(stats)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory in a cgroup's place. The files that are written into it make its removal fail, as processes do.
    fn stand_in() -> (tempfile::TempDir, Cgroup) {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("c");
        fs::create_dir_all(path.join("a/deep")).unwrap();
        fs::create_dir(path.join("b")).unwrap();
        (parent, Cgroup::at("c", path))
    }

    #[test]
    fn a_cgroup_that_stays_is_an_error_until_it_is_gone() {
        let (_parent, cgroup) = stand_in();
        let refused = cgroup.remove(Instant::now()).unwrap_err();
        assert!(refused.to_string().starts_with("remove the cgroup of c: "), "{refused}");
        // It was told to die, and what is below it went first.
        assert_eq!(fs::read_to_string(cgroup.path.join("cgroup.kill")).unwrap(), "1");
        assert!(!cgroup.path.join("a").exists() && !cgroup.path.join("b").exists());
        fs::remove_dir_all(&cgroup.path).unwrap();
        cgroup.remove(Instant::now()).unwrap();
    }

    #[test]
    fn processes_that_do_not_stop_in_time_go_on() {
        let (_parent, cgroup) = stand_in();
        fs::write(cgroup.path.join("cgroup.events"), "populated 1\nfrozen 0\n").unwrap();
        let refused = cgroup.freeze(true, Instant::now()).unwrap_err();
        assert!(refused.to_string().contains("do not stop"), "{refused}");
        assert_eq!(fs::read_to_string(cgroup.path.join("cgroup.freeze")).unwrap(), "0");
    }

    #[test]
    fn io_lines_are_read() {
        let stats = parse_io("254:16 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=9 dios=9").unwrap();
        assert_eq!((stats.major, stats.minor), (254, 16));
        assert_eq!((stats.rbytes, stats.wbytes, stats.rios, stats.wios), (1, 2, 3, 4));
        assert!(parse_io("nonsense").is_none());
    }
}
