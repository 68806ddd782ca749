//! Containers: what one is, how it is made, started and taken down.

pub mod cgroup;
mod cgroup_tree;
mod create;
mod destinations;
pub mod devices;
mod exec;
mod file_volumes;
mod limits;
mod mount_options;
pub mod mounts;
mod nodes;
mod rootfs;
pub mod seccomp;
mod spec;
mod tree;
mod unknown_calls;
mod working_directory;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use oci_spec::runtime::LinuxPersonalityDomain;
use tokio::time::Instant;

use crate::error::{AgentError, Result};
use crate::namespaces::Ids;
use crate::process::{Phase, Process};
use crate::spawner::LateBuilder;
use crate::sync::lock;
use cgroup::Cgroup;

pub use create::create;
pub use exec::{delete_exec, exec, start_exec};
pub use limits::limit;

/// What only fuzz targets reach.
#[cfg(fuzzing)]
pub mod fuzzing {
    pub use super::destinations::prepare;
    pub use super::devices::fuzzing::program;
    pub use super::mounts::Source;
    pub use super::spec::{Completed, Guest, complete, complete_process};
    pub use super::tree::Tree;
}

/// A container.
#[derive(Debug)]
pub struct Container {
    /// Its id.
    pub id: String,
    /// Extents of its layers.
    pub layers: Vec<u32>,
    /// Its cgroup.
    pub cgroup: Cgroup,
    /// Its first process.
    pub init: Arc<Process>,
    facts: Mutex<Facts>,
    paused: AtomicBool,
    execs: Mutex<HashMap<String, Arc<Exec>>>,
    /// Held while it is taken down, which only one call may do at a time.
    pub removal: tokio::sync::Mutex<()>,
    late_builder: Mutex<Option<LateBuilder>>,
}

/// What building a container found out and later execs need.
#[derive(Debug, Clone, Default)]
struct Facts {
    bundle: PathBuf,
    oom_score_adj: i32,
    /// It has a seccomp filter.
    filtered: bool,
    personality: Option<LinuxPersonalityDomain>,
    /// The users of the pod's user namespace, if it has one.
    ids: Option<Ids>,
    /// What an exec has where it does not say what it is to have.
    defaults: oci_spec::runtime::Process,
}

/// A further process of a container.
#[derive(Debug)]
pub struct Exec {
    /// The process.
    pub process: Arc<Process>,
    /// What to run, until it is started.
    plan: Mutex<Option<exec::Plan>>,
}

impl Container {
    /// A container that is being created.
    #[must_use]
    pub fn new(id: &str, layers: Vec<u32>) -> Arc<Self> {
        Arc::new(Self {
            id: id.to_owned(),
            layers,
            cgroup: Cgroup::of(id),
            init: Process::new(format!("container {id}"), Phase::Creating),
            facts: Mutex::default(),
            paused: AtomicBool::new(false),
            execs: Mutex::default(),
            removal: tokio::sync::Mutex::default(),
            late_builder: Mutex::default(),
        })
    }

    /// One whose cgroup is a directory of a test's.
    #[cfg(test)]
    pub(crate) fn in_cgroup(id: &str, layers: Vec<u32>, path: PathBuf) -> Arc<Self> {
        let mut container = Self::new(id, layers);
        if let Some(container) = Arc::get_mut(&mut container) {
            container.cgroup = Cgroup::at(id, path);
        }
        container
    }

    /// One of its processes: the first if `exec` is empty.
    ///
    /// # Errors
    ///
    /// [`AgentError::NotFound`].
    pub fn process(&self, exec: &str) -> Result<Arc<Process>> {
        if exec.is_empty() { Ok(Arc::clone(&self.init)) } else { Ok(Arc::clone(&self.exec(exec)?.process)) }
    }

    /// One of its execs.
    ///
    /// # Errors
    ///
    /// [`AgentError::NotFound`].
    pub fn exec(&self, id: &str) -> Result<Arc<Exec>> {
        self.execs()
            .get(id)
            .cloned()
            .ok_or_else(|| AgentError::NotFound(format!("container {} has no exec {id}", self.id)))
    }

    fn execs(&self) -> MutexGuard<'_, HashMap<String, Arc<Exec>>> {
        lock(&self.execs)
    }

    fn facts(&self) -> Facts {
        lock(&self.facts).clone()
    }

    /// Starts its first process.
    ///
    /// # Errors
    ///
    /// [`AgentError::WrongState`] unless it is created and not started.
    pub fn start(&self) -> Result<()> {
        self.init.advance(&[Phase::Created], Phase::Starting)?;
        if let Err(error) = create::start(&self.id) {
            // Unless it ended meanwhile, it is as it was.
            let _ = self.init.advance(&[Phase::Starting], Phase::Created);
            return Err(error);
        }
        // It may have ended already.
        let _ = self.init.advance(&[Phase::Starting], Phase::Running);
        Ok(())
    }

    /// Freezes or thaws its processes, which may take until `deadline`.
    ///
    /// # Errors
    ///
    /// [`AgentError::WrongState`] unless it is created and has not ended; otherwise the kernel's refusal.
    pub fn set_paused(&self, paused: bool, deadline: Instant) -> Result<()> {
        self.check_alive()?;
        self.cgroup.freeze(paused, deadline)?;
        self.paused.store(paused, Ordering::Relaxed);
        Ok(())
    }

    /// Refuses unless its first process is there, running its program or waiting to.
    ///
    /// # Errors
    ///
    /// [`AgentError::WrongState`].
    pub fn check_alive(&self) -> Result<()> {
        match self.init.phase() {
            Phase::Created | Phase::Starting | Phase::Running => Ok(()),
            _ => Err(AgentError::WrongState(format!("container {} is not running", self.id))),
        }
    }

    /// Refuses if its processes are frozen: one more would never get anywhere.
    fn check_not_paused(&self) -> Result<()> {
        if self.paused.load(Ordering::Relaxed) {
            return Err(AgentError::WrongState(format!("container {} is paused", self.id)));
        }
        Ok(())
    }

    /// Keeps a builder that was not done in time until the container is taken down.
    fn keep_late_builder(&self, builder: LateBuilder) {
        *lock(&self.late_builder) = Some(builder);
    }

    /// Takes down what it had in the guest. Its processes must have ended, or have no right to go on; they may take until
    /// `deadline` to die.
    ///
    /// # Errors
    ///
    /// When processes do not die or the kernel refuses. What can be taken down is gone then; a further call does the rest.
    pub fn clear(&self, deadline: Instant) -> Result<()> {
        for exec in self.execs().drain() {
            exec.1.process.finish_streams();
        }
        let removed =
            self.cgroup.remove(deadline).and_then(|()| self.see_to_the_end_of_its_builder(deadline));
        self.init.finish_streams();
        let unmounted = rootfs::unmount_and_clear(&self.id);
        let _ = std::fs::remove_dir_all(std::path::Path::new(crate::paths::RUNTIME).join(&self.id));
        removed.and(unmounted)
    }

    /// What a late builder still does would be done to a later container of the same id.
    fn see_to_the_end_of_its_builder(&self, deadline: Instant) -> Result<()> {
        let mut late = lock(&self.late_builder);
        if late.as_ref().is_some_and(|builder| !builder.has_ended(deadline)) {
            return Err(AgentError::Failed(format!("what builds container {} has not ended yet", self.id)));
        }
        // It may have made the cgroup once more.
        if late.take().is_some() { self.cgroup.remove(deadline) } else { Ok(()) }
    }
}

/// Refuses ids that are not what the OCI runtime spec and a path allow.
///
/// # Errors
///
/// [`AgentError::Invalid`].
pub fn check_id(id: &str) -> Result<()> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'+');
    // libcontainer's socket for a container must fit in a socket address.
    if id.is_empty() || id.len() > 76 || id.starts_with('.') || !id.bytes().all(plain) {
        return Err(AgentError::Invalid(format!("{id:?} is no id for a container or exec")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_are_paths_are_refused() {
        for id in ["", ".", "..", "a/b", "../x", "a b", &"x".repeat(77)] {
            assert!(check_id(id).is_err(), "{id:?}");
        }
        check_id(&"f".repeat(64)).unwrap();
    }

    #[test]
    fn a_container_is_alive_from_its_creation_to_its_end() {
        let container = Container::new("c", vec![]);
        let alive =
            [Phase::Creating, Phase::Created, Phase::Starting, Phase::Running, Phase::Stopped].map(|phase| {
                container.init.advance(&[container.init.phase()], phase).unwrap();
                container.check_alive().is_ok()
            });
        assert_eq!(alive, [false, true, true, true, false]);
    }

    #[test]
    fn a_missing_exec_is_not_found() {
        let container = Container::new("c", vec![]);
        assert!(matches!(container.process("e"), Err(AgentError::NotFound(_))));
        assert!(container.process("").is_ok());
        assert!(matches!(container.start(), Err(AgentError::WrongState(_))));
    }
}
