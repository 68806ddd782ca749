//! One pod: its machine, what belongs to it on the host, and the task that containerd takes for its pause container.

pub mod boot;
mod clock;
pub mod plan;
mod port_forward;
pub mod supervisor;
mod tunables;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use containerd_shim_protos::events::task::{TaskExit, TaskStart};
use protobuf::MessageField;
use ravelin_policy::Roots;
use ravelin_proto::agent::{Empty, event};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::agent::Agent;
use crate::cgroup::PodCgroup;
use crate::config::Config;
use crate::error::{TaskError, chain};
use crate::events::{Publisher, timestamp};
use crate::extents::Extents;
use crate::machine::{self, Machine};
use crate::network;
use crate::process::{Exit, Life, Phase};
use crate::rootfs::LayerStore;
use crate::state::{State, StateDir};
use crate::sync::lock;
use crate::volumes::{PodPaths, PodVolumes};
use boot::BootError;
use plan::Plan;
use supervisor::{How, Order, Supervisor, deadline};

/// Exit status of a pod, and of its containers, whose machine ended unasked.
pub const LOST: u32 = 255;
/// Exit status of what SIGKILL ended.
pub const KILLED: u32 = 128 + 9;
/// Pids of 64-bit Linux are below this (`PID_MAX_LIMIT`).
const PID_MAX_LIMIT: u32 = 1 << 22;

/// A pod whose agent answers: what its containers are made with.
#[derive(Debug)]
pub struct Pod {
    /// containerd's id of the sandbox.
    pub sandbox_id: String,
    /// Kubernetes's UID of the pod; may be empty.
    pub pod_uid: String,
    /// The pod may have the guest's IPC objects for the host's.
    pub host_ipc: bool,
    /// Where the kubelet and containerd keep what they make for pods.
    pub roots: Roots,
    /// The agent.
    pub agent: Agent,
    /// Who ends the machine.
    pub supervisor: Supervisor,
    /// The layers disk.
    pub extents: Extents,
    /// Images of layers on this node.
    pub layers: LayerStore,
    /// The pod's volumes.
    pub volumes: PodVolumes,
    /// The next stdio stream's id.
    pub next_stream: AtomicU64,
    next_pid: AtomicU32,
}

/// What a pod has on the host, to be removed with it.
#[derive(Debug, Default)]
pub(crate) struct Resources {
    machine: Option<Machine>,
    cgroup: Option<PodCgroup>,
    netns: Option<PathBuf>,
}

impl Resources {
    /// Ends the machine and removes the rest. What fails is logged; nothing stops the removal of the others.
    async fn remove(self) {
        if let Some(machine) = self.machine {
            machine.kill();
            let _ = tokio::time::timeout(deadline::REMOVAL, machine.wait()).await;
        }
        let network = async {
            let Some(netns) = self.netns else { return };
            match tokio::time::timeout(deadline::REMOVAL, network::detach(&netns)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!("cannot remove the pod's tap: {}", chain(&error)),
                Err(_) => tracing::warn!("the removal of the pod's tap takes too long"),
            }
        };
        let cgroup = async {
            let Some(cgroup) = self.cgroup else { return };
            match tokio::time::timeout(deadline::REMOVAL, cgroup.delete()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!("cannot remove the pod's cgroup: {}", chain(&error)),
                Err(_) => tracing::warn!("the removal of the pod's cgroup takes too long"),
            }
        };
        tokio::join!(network, cgroup);
    }
}

/// A guest on its way up.
type Booting = JoinHandle<Result<Arc<Pod>, BootError>>;

/// The sandbox task.
#[derive(Debug)]
pub struct Sandbox {
    /// Its id.
    pub id: String,
    /// Its bundle, as containerd named it.
    pub bundle: String,
    life: Life,
    machine: Machine,
    pod: OnceLock<Arc<Pod>>,
    booting: Mutex<Option<Booting>>,
    supervisor: Supervisor,
    resources: Mutex<Resources>,
    /// One start or end at a time, so that their events come in order.
    turn: tokio::sync::Mutex<()>,
}

impl Sandbox {
    /// Starts the pod's machine; its guest boots while containerd goes on. On an error nothing is left. Nobody waits for
    /// the machine's end before [`Sandbox::watch`].
    ///
    /// # Errors
    /// What could not be had, and why; also when `cancelled` comes first.
    pub async fn create(
        plan: Plan,
        bundle: String,
        config: &Arc<Config>,
        mut state: State,
        directory: &StateDir,
        cancelled: &CancellationToken,
    ) -> Result<Arc<Self>, TaskError> {
        let turn = tokio::select! {
            biased;
            () = cancelled.cancelled() => return Err(TaskError::failed(BootError::Cancelled)),
            turn = boot::turn(config) => turn.map_err(TaskError::failed)?,
        };
        let mut resources = Resources::default();
        let booted = boot::machine(&plan, config, &mut state, directory, &mut resources, cancelled).await;
        let (machine, attachment) = match booted {
            Ok(booted) => booted,
            Err(error) => {
                resources.remove().await;
                return Err(TaskError::failed(error));
            }
        };
        let supervisor = Supervisor::new(&plan.sandbox_id);
        let booting = {
            let (plan, config, machine) = (plan.clone(), Arc::clone(config), machine.clone());
            let supervisor = supervisor.clone();
            tokio::spawn(
                async move { boot::agent(&plan, &config, machine, attachment, turn, supervisor).await },
            )
        };
        Ok(Arc::new(Self {
            id: plan.sandbox_id,
            bundle,
            life: Life::default(),
            machine,
            pod: OnceLock::new(),
            booting: Mutex::new(Some(booting)),
            supervisor,
            resources: Mutex::new(resources),
            turn: tokio::sync::Mutex::default(),
        }))
    }

    /// The machine's process, which stands for every process of the pod.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.machine.pid()
    }

    /// The sandbox's phase and end.
    #[must_use]
    pub fn life(&self) -> &Life {
        &self.life
    }

    /// The pod, if its agent has answered and its machine runs.
    ///
    /// # Errors
    /// When the pod was not started, or has ended.
    pub fn pod(&self) -> Result<Arc<Pod>, TaskError> {
        if self.life.exit().is_some() || self.machine.exited().is_some() {
            return Err(TaskError::FailedPrecondition("the pod's machine has ended".to_owned()));
        }
        let missing = || TaskError::FailedPrecondition("the sandbox has not been started".to_owned());
        self.pod.get().cloned().ok_or_else(missing)
    }

    /// Waits for the guest's agent; then containers can be made.
    ///
    /// # Errors
    /// When the guest does not come up; the machine is ended then.
    pub async fn start(&self, publisher: &Publisher) -> Result<(), TaskError> {
        if self.life.phase() != Phase::Created {
            return Err(TaskError::FailedPrecondition("the sandbox has been started already".to_owned()));
        }
        let Some(booting) = lock(&self.booting).take() else {
            return Err(TaskError::FailedPrecondition("the sandbox is being started already".to_owned()));
        };
        let booted = match booting.await {
            Ok(booted) => booted.map_err(TaskError::failed),
            Err(_) => Err(TaskError::Failed("the start of the pod's machine was cut short".to_owned())),
        };
        match booted {
            Ok(pod) => {
                let _ = self.pod.set(pod);
                let _turn = self.turn.lock().await;
                if !self.life.set(Phase::Running) {
                    return Err(TaskError::Failed(
                        "the pod's machine has ended while it was started".to_owned(),
                    ));
                }
                let mut event = TaskStart::new();
                event.container_id.clone_from(&self.id);
                event.pid = self.pid();
                publisher.publish(&event);
                Ok(())
            }
            Err(error) => {
                self.supervisor.cut("its guest did not come up");
                self.life.ended().await;
                Err(error)
            }
        }
    }

    /// Sends the sandbox a signal: the ones that end a pause container end the machine, others do nothing.
    ///
    /// # Errors
    /// When it has ended, or there is no such signal.
    pub fn kill(&self, signal: u32) -> Result<(), TaskError> {
        if self.life.exit().is_some() {
            return Err(TaskError::NotFound("process already finished".to_owned()));
        }
        let (how, status) = match signal {
            2 | 15 => (How::Ask, 0),
            9 => (How::Stop, KILLED),
            0..=64 => return Ok(()),
            _ => return Err(TaskError::InvalidArgument(format!("there is no signal {signal}"))),
        };
        self.supervisor.order(Order { how, status, why: "it was asked to" });
        Ok(())
    }

    /// Freezes the whole machine, or lets it go on.
    ///
    /// # Errors
    /// When it is in the wrong state, or does not obey.
    pub async fn pause(&self, frozen: bool) -> Result<(), TaskError> {
        let (from, to) =
            if frozen { (Phase::Running, Phase::Paused) } else { (Phase::Paused, Phase::Running) };
        if self.life.phase() != from {
            return Err(TaskError::FailedPrecondition(format!(
                "the sandbox is {:?}",
                self.life.phase().status()
            )));
        }
        // Said before it is so, and taken back after: in between nobody wonders why the guest is silent.
        if frozen {
            self.supervisor.set_frozen(true);
        }
        let done = if frozen { self.machine.pause().await } else { self.machine.resume().await };
        self.supervisor.set_frozen(frozen == done.is_ok());
        done.map_err(TaskError::failed)?;
        self.life.set(to);
        Ok(())
    }

    /// What a process of the pod that ends with the machine has for an exit status.
    #[must_use]
    pub fn status_of_the_lost(&self) -> u32 {
        match self.supervisor.ordered() {
            Some(order) if order.status != LOST => KILLED,
            _ => LOST,
        }
    }

    /// Sees the machine to its end, removes what the pod has on the host, and tells the world.
    pub async fn watch(self: Arc<Self>, publisher: Publisher) {
        let agent = || self.pod.get().map(|pod| pod.agent.clone());
        let exit = self.supervisor.oversee(&self.machine, agent).await;
        let order = self.supervisor.ordered();
        match order {
            None => {
                let short = lock(&self.resources).cgroup.as_ref().is_some_and(PodCgroup::oom_killed);
                let why = if short { ": the node's kernel killed it for memory" } else { "" };
                tracing::error!(sandbox = self.id, "the pod's machine has ended unasked: {exit}{why}");
            }
            Some(order) => {
                tracing::info!(
                    sandbox = self.id,
                    "the pod's machine has ended: {exit}, because {}",
                    order.why
                );
            }
        }
        if let Some(booting) = lock(&self.booting).as_ref() {
            booting.abort();
        }
        if let Some(pod) = self.pod.get() {
            pod.volumes.close();
        }
        let resources = std::mem::take(&mut *lock(&self.resources));
        resources.remove().await;
        let _turn = self.turn.lock().await;
        let exit = Exit::now(order.map_or(LOST, |order| order.status));
        self.life.set(Phase::Stopped(exit));
        let mut event = TaskExit::new();
        event.container_id.clone_from(&self.id);
        event.id.clone_from(&self.id);
        event.pid = self.pid();
        event.exit_status = exit.status;
        event.exited_at = MessageField::some(timestamp(exit.at));
        publisher.publish(&event);
    }
}

impl Pod {
    fn new(plan: &Plan, config: &Config, agent: Agent, supervisor: Supervisor) -> Self {
        Self {
            sandbox_id: plan.sandbox_id.clone(),
            pod_uid: plan.pod_uid.clone(),
            host_ipc: plan.host_ipc,
            roots: config.roots.clone(),
            volumes: PodVolumes::new(
                agent.client(),
                PodPaths {
                    sandbox_id: plan.sandbox_id.clone(),
                    pod_uid: plan.pod_uid.clone(),
                    host_ipc: plan.host_ipc,
                    roots: config.roots.clone(),
                },
            ),
            extents: Extents::default(),
            layers: LayerStore::new(config.layers_dir(), config.layer_deadline()),
            // 0 means none.
            next_stream: AtomicU64::new(1),
            next_pid: AtomicU32::new(PID_MAX_LIMIT + 1),
            agent,
            supervisor,
        }
    }

    /// A number for containerd to take for a container's pid.
    ///
    /// A pod's processes have no pids on the host, and the machine's stands for the sandbox. Each container gets a number
    /// of its own, because CRI names by it the container whose processes another one joins; it is one that no process of
    /// the host can have, so that nobody signals, traces or enters a stranger by it.
    #[must_use]
    pub fn take_pid(&self) -> u32 {
        self.next_pid.fetch_add(1, Ordering::Relaxed)
    }

    /// Calls `oom` for every container in which the guest's kernel kills for memory, until the machine ends.
    pub async fn watch_oom(&self, oom: impl Fn(&str)) {
        while self.agent.machine().exited().is_none() {
            let mut client = self.agent.long_client();
            if let Ok(events) = client.events(Empty {}).await {
                let mut events = events.into_inner();
                while let Ok(Some(event)) = events.message().await {
                    if let Some(event::Kind::Oom(event)) = event.kind {
                        oom(&event.container_id);
                    }
                }
            }
            tokio::select! {
                _ = self.agent.machine().wait() => {}
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
            }
        }
    }
}

/// Removes everything that a dead shim's pod left on the host, as its state tells.
pub async fn remove_remains(state: &State) {
    if let Some(machine) = state.machine {
        match machine::kill_recorded(machine.pid, machine.start_time) {
            Ok(true) => tracing::info!("killed the machine of the pod {}", state.sandbox_id),
            Ok(false) => {}
            Err(error) => tracing::warn!("cannot kill the machine {}: {error}", machine.pid),
        }
    }
    if let Some(netns) = &state.netns
        && let Err(error) = network::detach(netns).await
    {
        tracing::warn!("cannot remove the pod's tap: {}", chain(&error));
    }
    if let Some(path) = &state.cgroups_path
        && let Err(error) = crate::cgroup::delete(path).await
    {
        tracing::warn!("cannot remove the pod's cgroup: {}", chain(&error));
    }
}
