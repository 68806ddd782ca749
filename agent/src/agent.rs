//! The agent's state and the calls that concern the whole pod.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use ravelin_proto::PROTOCOL_VERSION;
use ravelin_proto::agent as api;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::Pid;
use rustix::system::{RebootCommand, reboot};
use tokio::time::Instant;

use crate::container::{Container, check_id, create};
use crate::error::{AgentError, Attempt, Result};
use crate::extents::{self, Extents, Lack};
use crate::init::mark::{self, Mark};
use crate::namespaces::{Ids, Namespaces, within};
use crate::process::{Ended, Phase};
use crate::reaper::Exit;
use crate::services::Services;
use crate::spawner::Request;
use crate::sync::{blocking, lock};
use crate::{clock, namespaces, network, paths, sysctl};

/// The pod's `/dev/shm` unless the host says otherwise, in bytes.
const DEFAULT_SHM: u64 = 64 << 20;

/// How long the processes of a container that is taken down may take to die. A caller waits longer, and hears of those that
/// do not.
const REMOVAL: Duration = Duration::from_secs(30);

/// The agent.
#[derive(Debug)]
pub struct Agent {
    /// What containers need of it.
    pub services: Arc<Services>,
    state: Mutex<State>,
    /// Held while an extent comes or goes: its record tells what is mounted.
    extent_changes: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    set_up: bool,
    containers: HashMap<String, Arc<Container>>,
    extents: Extents,
    /// Init of the pod's PID namespace.
    pause: Option<Pid>,
}

impl Agent {
    /// An agent that has no container yet.
    #[must_use]
    pub fn new(services: Services) -> Arc<Self> {
        Arc::new(Self {
            services: Arc::new(services),
            state: Mutex::default(),
            extent_changes: tokio::sync::Mutex::default(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// A container by id.
    ///
    /// # Errors
    ///
    /// [`AgentError::NotFound`].
    pub fn container(&self, id: &str) -> Result<Arc<Container>> {
        let found = self.state().containers.get(id).cloned();
        found.ok_or_else(|| AgentError::NotFound(format!("there is no container {id}")))
    }

    /// Prepares the guest for its pod; what has to be made for that may take until `deadline`.
    ///
    /// # Errors
    ///
    /// [`AgentError::WrongState`] the second time or for another protocol version.
    pub async fn set_up(
        self: &Arc<Self>,
        request: &api::SetupSandboxRequest,
        deadline: Instant,
    ) -> Result<api::SetupSandboxResponse> {
        if request.protocol_version != PROTOCOL_VERSION {
            return Err(AgentError::WrongState(format!(
                "the host speaks version {} of the agent protocol, this guest version {PROTOCOL_VERSION}",
                request.protocol_version
            )));
        }
        if std::mem::replace(&mut self.state().set_up, true) {
            return Err(AgentError::WrongState("the guest is set up already".to_owned()));
        }
        let (agent, copy) = (Arc::clone(self), request.clone());
        blocking(move || agent.prepare(&copy, deadline)).await?;
        network::configure(&self.services, request).await?;
        let kernel = rustix::system::uname();
        Ok(api::SetupSandboxResponse {
            protocol_version: PROTOCOL_VERSION,
            kernel_release: kernel.release().to_string_lossy().into_owned(),
        })
    }

    /// The part of setting up that may block.
    fn prepare(&self, request: &api::SetupSandboxRequest, deadline: Instant) -> Result<()> {
        if request.unix_nanos != 0 {
            clock::step(request.unix_nanos)?;
        }
        let ids = request.user_namespace.map(Ids::new).transpose()?;
        // A network namespace has some of them from the guest's own, as that is when it is made.
        sysctl::adopt(&request.tunables);
        if ids.is_some() || request.shared_pid_namespace {
            self.make_namespaces(ids, deadline)?;
        }
        if !request.hostname.is_empty() {
            within(self.services.namespaces().map(Arc::as_ref), || {
                rustix::system::sethostname(request.hostname.as_bytes())
                    .attempt(|| format!("set the hostname {:?}", request.hostname))
            })?;
        }
        mount_shm(if request.shm_bytes == 0 { DEFAULT_SHM } else { request.shm_bytes })?;
        Ok(())
    }

    /// Makes the pod's PID namespace, and those that come with a user namespace, by `deadline` or not at all.
    fn make_namespaces(&self, ids: Option<Ids>, deadline: Instant) -> Result<()> {
        let made = self.services.spawner.spawn(&Request::Pause { ids }, &[], deadline, |spawned| {
            self.state().pause = Some(spawned.pid);
            Ok(())
        });
        made.map_err(|error| AgentError::Failed(format!("make the pod's namespaces: {error}")))?;
        let Some(ids) = ids else { return Ok(()) };
        if let Some(pause) = self.state().pause {
            Namespaces::keep_pids_of(pause)?;
        }
        self.services.set_namespaces(Namespaces::open(ids)?)
    }

    /// Adds an extent, or finds it added. Its device is waited for until `deadline`.
    ///
    /// # Errors
    ///
    /// As [`Extents::lack`], [`extents::add`] and [`extents::mount_again`].
    pub async fn add_extent(&self, request: api::AddExtentRequest, deadline: Instant) -> Result<()> {
        let _one = self.extent_changes.lock().await;
        let lack = self.state().extents.lack(&request)?;
        let copy = request.clone();
        match lack {
            Lack::Nothing => return Ok(()),
            Lack::Mount => blocking(move || extents::mount_again(&copy)).await?,
            Lack::Everything => blocking(move || extents::add(&copy, deadline)).await?,
        }
        self.state().extents.insert(&request);
        Ok(())
    }

    /// Removes an extent.
    ///
    /// # Errors
    ///
    /// As [`Extents::take`] and [`extents::remove`]; it stays known then, so that this can be tried again. One that is
    /// unmounted already is no layer any more, until it is added again.
    pub async fn remove_extent(&self, request: api::RemoveExtentRequest) -> Result<()> {
        let _one = self.extent_changes.lock().await;
        let (key, mut extent) = self.state().extents.take(&request)?;
        let removed = extents::remove(key, &mut extent).await;
        if removed.is_err() {
            self.state().extents.put_back((key, extent));
        }
        removed
    }

    /// The PID namespace a new container joins; `None` for one of its own.
    ///
    /// # Errors
    ///
    /// [`AgentError::WrongState`] when there is no such namespace now.
    fn pid_namespace(&self, request: &api::CreateContainerRequest) -> Result<Option<PathBuf>> {
        let pid = match request.pid_namespace() {
            api::NamespaceMode::Container => return Ok(None),
            api::NamespaceMode::Pod if self.services.namespaces().is_some() => {
                return Ok(Some(Namespaces::path(namespaces::PIDS)));
            }
            api::NamespaceMode::Pod => self.state().pause.ok_or_else(|| {
                AgentError::WrongState("the pod has no PID namespace of its own".to_owned())
            })?,
            api::NamespaceMode::Target => {
                let target = self.container(&request.pid_target)?;
                target.check_alive()?;
                target.init.pid().ok_or_else(|| {
                    AgentError::WrongState(format!("container {} has no process", request.pid_target))
                })?
            }
        };
        Ok(Some(PathBuf::from(format!("/proc/{}/ns/pid", pid.as_raw_nonzero()))))
    }

    /// Creates a container by `deadline`, or not at all.
    ///
    /// # Errors
    ///
    /// As [`create`]; [`AgentError::AlreadyExists`] if the id is taken. A container that cannot be taken down again stays known,
    /// as one that has ended, to be deleted.
    pub async fn create_container(
        &self,
        request: api::CreateContainerRequest,
        deadline: Instant,
    ) -> Result<u32> {
        let id = request.container_id.clone();
        check_id(&id)?;
        // The place of the pod's own PID namespace.
        if id == "pause" {
            return Err(AgentError::Invalid(format!("{id:?} is no id for a container")));
        }
        let container = Container::new(&id, request.layers.clone());
        {
            let mut state = self.state();
            if state.containers.contains_key(&id) {
                return Err(AgentError::AlreadyExists(format!("container {id} exists")));
            }
            state.extents.take_layers(&container.layers)?;
            state.containers.insert(id.clone(), Arc::clone(&container));
        }
        let created = match self.pid_namespace(&request) {
            Ok(namespace) => create(&self.services, &container, request, namespace, deadline).await,
            Err(error) => Err(error),
        };
        if created.is_err() {
            let _alone = container.removal.lock().await;
            // Who waits for the first process of a container that never came to be is told as well.
            container.init.end(Ended { exit: Exit::now(137), oom_killed: false });
            if let Err(error) = self.take_down(&container, Instant::now() + REMOVAL).await {
                crate::log!("cannot clear container {id}: {error}");
            }
        }
        created
    }

    /// Deletes a container that is stopped, or was never started. Its processes may take until `deadline` to die, and no
    /// longer than [`REMOVAL`].
    ///
    /// # Errors
    ///
    /// [`AgentError::WrongState`] while it runs; otherwise what could not be taken down. It stays known then, as one that is
    /// stopped, so that this can be tried again.
    pub async fn delete_container(&self, id: &str, deadline: Instant) -> Result<Exit> {
        let container = self.container(id)?;
        let _alone = container.removal.lock().await;
        // Another call may have deleted it meanwhile.
        if !self.knows(&container) {
            return Err(AgentError::NotFound(format!("there is no container {id}")));
        }
        container.init.advance(&[Phase::Created, Phase::Stopped], Phase::Deleting)?;
        // Who waits for the first process of a container that was never started is told as well.
        container.init.end(Ended { exit: Exit::now(137), oom_killed: false });
        let deadline = deadline.min(Instant::now() + REMOVAL);
        if let Err(error) = self.take_down(&container, deadline).await {
            let _ = container.init.advance(&[Phase::Deleting], Phase::Stopped);
            return Err(error);
        }
        Ok(container.init.ended().map_or_else(|| Exit::now(137), |ended| ended.exit))
    }

    /// Whether this very container is there, and not a later one of its id.
    fn knows(&self, container: &Arc<Container>) -> bool {
        self.state().containers.get(&container.id).is_some_and(|known| Arc::ptr_eq(known, container))
    }

    /// Takes a container down and forgets it, once nothing of it is left. Its `removal` is held.
    async fn take_down(&self, container: &Arc<Container>, deadline: Instant) -> Result<()> {
        self.services.oom.remove(&container.id);
        let copy = Arc::clone(container);
        blocking(move || copy.clear(deadline)).await?;
        let mut state = self.state();
        state.extents.give_layers(&container.layers);
        state.containers.remove(&container.id);
        Ok(())
    }

    /// Ends the guest.
    pub async fn shut_down(&self) {
        let _ = blocking(|| {
            end_pod();
            Ok(())
        })
        .await;
        mark::write(Mark::PowerOff);
        // Where no machine watches for the mark, the kernel's own way.
        if let Err(error) = reboot(RebootCommand::PowerOff) {
            crate::log!("cannot power off: {error}");
        }
    }
}

fn mount_shm(bytes: u64) -> Result<()> {
    fs::create_dir_all(paths::SHM).attempt(|| format!("create {}", paths::SHM))?;
    let options = std::ffi::CString::new(format!("mode=1777,size={bytes}")).unwrap_or_default();
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("shm", paths::SHM, c"tmpfs", flags, Some(options.as_c_str()))
        .attempt(|| format!("mount a tmpfs of {bytes} bytes on {}", paths::SHM))
}

/// Kills all containers and writes volumes out. The scratch disk is not written out: it ends with the pod.
fn end_pod() {
    let _ = fs::write(format!("{}/cgroup.kill", paths::POD_CGROUP), "1");
    let deadline = Instant::now() + Duration::from_secs(2);
    let events = format!("{}/cgroup.events", paths::POD_CGROUP);
    while fs::read_to_string(&events).is_ok_and(|text| text.contains("populated 1"))
        && Instant::now() < deadline
    {
        std::thread::sleep(Duration::from_millis(1));
    }
    for entry in fs::read_dir(paths::BLOCK_VOLUMES).into_iter().flatten().flatten() {
        if let Ok(directory) = fs::File::open(entry.path()) {
            let _ = rustix::fs::syncfs(&directory);
        }
        let _ = unmount(entry.path(), UnmountFlags::DETACH);
    }
    // Last: a file system of the network may not answer. What was written through a map is in the guest's memory until now.
    if let Ok(files) = fs::File::open(paths::FILE_VOLUMES) {
        let _ = rustix::fs::syncfs(&files);
    }
}

#[cfg(test)]
#[path = "agent_tests.rs"]
mod tests;
