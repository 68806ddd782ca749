//! One pod: its machine, what belongs to it on the host, and what containerd knows of it: the task that it takes for a
//! pause container, or the sandbox of its sandbox API.

pub mod boot;
mod clock;
mod end;
mod file_server;
mod files;
pub mod plan;
mod pod;
mod port_forward;
pub mod remains;
mod request;
mod resize;
pub mod supervisor;
#[cfg(test)]
pub(crate) mod testing;
mod tunables;
mod uid;

pub use files::PodFiles;
pub use pod::Pod;
pub use request::Request;
pub use resize::{Asked, ContainerLimits};

use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::SystemTime;

use containerd_shim_protos::events::task::TaskStart;
use protobuf::MessageDyn;
use ravelin_proto::agent::StatsResponse;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::error::TaskError;
use crate::events::Publisher;
use crate::machine::{self, Machine};
use crate::process::{Life, Phase};
use crate::state::{State, StateDir};
use crate::sync::lock;
use boot::BootError;
use plan::Plan;
use remains::Resources;
use supervisor::{How, Order, Supervisor};

/// Exit status of a pod, and of its containers, whose machine ended unasked.
pub const LOST: u32 = 255;
/// Exit status of what SIGKILL ended.
pub const KILLED: u32 = 128 + 9;

/// What containerd knows of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Api {
    /// A task, which it takes for a pause container, and of which it wants to hear as of any task.
    Task,
    /// A sandbox (`containerd.runtime.sandbox.v1`). It is no task.
    Sandbox,
}

/// A guest on its way up.
type Booting = JoinHandle<Result<Arc<Pod>, BootError>>;

/// The sandbox.
#[derive(Debug)]
pub struct Sandbox {
    /// Its id.
    pub id: String,
    /// What it was made from.
    pub plan: Plan,
    /// Its bundle, as containerd named it.
    pub bundle: String,
    /// What containerd knows of it.
    pub api: Api,
    /// When its machine was started.
    pub created_at: SystemTime,
    life: Life,
    machine: Machine,
    pod: OnceLock<Arc<Pod>>,
    booting: Mutex<Option<Booting>>,
    supervisor: Supervisor,
    /// Whether the node's kernel killed the machine for memory, as was seen when it had ended.
    oom_killed: OnceLock<bool>,
    resources: Mutex<Resources>,
    /// MiB of memory that the guest has: its size, until its containers are given other limits.
    memory_mib: AtomicU32,
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
        api: Api,
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
        let mut resources = Resources { directory: Some(directory.clone()), ..Resources::default() };
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
        let memory_mib = plan.size.memory_mib;
        Ok(Arc::new(Self {
            id: plan.sandbox_id.clone(),
            plan,
            bundle,
            api,
            created_at: SystemTime::now(),
            life: Life::default(),
            machine,
            pod: OnceLock::new(),
            booting: Mutex::new(Some(booting)),
            supervisor,
            oom_killed: OnceLock::new(),
            resources: Mutex::new(resources),
            memory_mib: AtomicU32::new(memory_mib),
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
        match self.life.phase() {
            Phase::Created => {}
            Phase::Stopped(_) => return Err(self.ended_early()),
            Phase::Running | Phase::Paused => {
                return Err(TaskError::FailedPrecondition("the sandbox has been started already".to_owned()));
            }
        }
        let Some(booting) = lock(&self.booting).take() else {
            return Err(TaskError::FailedPrecondition("the sandbox is being started already".to_owned()));
        };
        let booted = match booting.await {
            Ok(booted) => booted.map_err(TaskError::failed),
            Err(_) => Err(self.ended_early()),
        };
        match booted {
            Ok(pod) => {
                let _ = self.pod.set(pod);
                let _turn = self.turn.lock().await;
                if !self.life.set(Phase::Running) {
                    return Err(self.ended_early());
                }
                let mut event = TaskStart::new();
                event.container_id.clone_from(&self.id);
                event.pid = self.pid();
                self.tell(publisher, &event);
                Ok(())
            }
            Err(error) => {
                self.supervisor.cut("its guest did not come up");
                self.life.ended().await;
                Err(error)
            }
        }
    }

    /// The error for a pod whose machine did not live until it was started.
    fn ended_early(&self) -> TaskError {
        let text = "the pod's machine has ended before the pod was started";
        match self.machine.exited() {
            Some(exit) => TaskError::Failed(format!("{text}: {}", machine::MachineError::Ended(exit))),
            None => TaskError::Failed(text.to_owned()),
        }
    }

    /// Whether its machine runs.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.life.exit().is_none() && self.machine.exited().is_none()
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

    /// Ends the machine because containerd wants it; a pod that is stopped has no failure to report.
    pub fn stop(&self) {
        self.supervisor.order(Order { how: How::Stop, status: 0, why: "it was asked to" });
    }

    /// Ends the machine at once.
    pub fn cut(&self, why: &'static str) {
        self.supervisor.order(Order { how: How::Cut, status: KILLED, why });
    }

    /// What the pod uses on the node.
    ///
    /// # Errors
    /// When its cgroup is gone, or does not tell.
    pub fn counters(&self) -> Result<StatsResponse, TaskError> {
        match lock(&self.resources).cgroup.as_ref() {
            Some(cgroup) => cgroup.counters().map_err(TaskError::failed),
            None => Err(TaskError::FailedPrecondition("the pod's machine has ended".to_owned())),
        }
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

    /// Publishes an event of its task, if it is one.
    pub fn tell(&self, publisher: &Publisher, event: &dyn MessageDyn) {
        if self.api == Api::Task {
            publisher.publish(event);
        }
    }
}
