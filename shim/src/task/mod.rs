//! Containers and their execs.

mod counters;
mod create;
mod exec;
mod kill;
mod outcome;
mod removal;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use create::{Neighbours, Request, create, judge};
pub use exec::Exec;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use containerd_shim_protos::cgroups_v2::metrics::Metrics;
use containerd_shim_protos::events::task::{TaskDelete, TaskOOM, TaskPaused, TaskResumed, TaskStart};
use protobuf::MessageField;
use ravelin_proto::agent::{ContainerRequest, ProcessRequest, ResizeTtyRequest, UpdateRequest};

use crate::agent::Agent;
use crate::error::TaskError;
use crate::events::{Publisher, timestamp};
use crate::extents::Held;
use crate::process::{Exit, Life, Phase};
use crate::sandbox::supervisor::deadline;
use crate::sandbox::{Asked, ContainerLimits, Pod, Sandbox};
use crate::stdio::{Io, Paths};
use crate::sync::lock;
#[cfg(test)]
pub(crate) use kill::kill as signal;
use kill::{KILL, kill, remove_from_guest};
use outcome::{deleted_or_gone, exit_event, finished, is_oom_killed, precondition, status};
pub(crate) use removal::Removal;

/// Time the carrying back of termination logs may take before the exit is told.
const COLLECT_DEADLINE: Duration = Duration::from_secs(10);
/// Time the ends of a container's execs may take before its own is told: their last words have ten seconds.
const EXECS_DEADLINE: Duration = Duration::from_secs(12);

/// What belongs to a container's first process alone.
#[derive(Debug)]
pub(crate) struct Init {
    layers: Vec<Held>,
    limits: ContainerLimits,
    terminal: bool,
}

/// A container.
#[derive(Debug)]
pub struct Container {
    /// Its id.
    pub id: String,
    /// Its bundle.
    pub bundle: String,
    /// Its stdio, as containerd named it.
    pub paths: Paths,
    life: Life,
    io: Io,
    terminal: bool,
    pid: u32,
    pod: Arc<Pod>,
    layers: Mutex<Vec<Held>>,
    execs: Mutex<BTreeMap<String, Arc<Exec>>>,
    oom_told: AtomicBool,
    /// SIGKILL was sent to all that it is.
    killed: AtomicBool,
    removal: Arc<Removal>,
    /// Its limits.
    limits: Mutex<ContainerLimits>,
    /// What the guest last said of its use.
    counters: Mutex<Option<Metrics>>,
    /// One start, exit or deletion at a time, so that their events come in order.
    turn: tokio::sync::Mutex<()>,
}

impl Container {
    fn new(request: Request, pod: Arc<Pod>, init: Init, io: Io) -> Self {
        Self {
            id: request.id,
            bundle: request.bundle,
            paths: request.paths,
            life: Life::default(),
            io,
            terminal: init.terminal,
            pid: pod.take_pid(),
            pod,
            layers: Mutex::new(init.layers),
            execs: Mutex::default(),
            oom_told: AtomicBool::new(false),
            killed: AtomicBool::new(false),
            removal: Arc::default(),
            limits: Mutex::new(init.limits),
            counters: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
        }
    }

    /// The first process's phase and end.
    #[must_use]
    pub fn life(&self) -> &Life {
        &self.life
    }

    fn agent(&self) -> &Agent {
        &self.pod.agent
    }

    /// The number that containerd takes for the container's pid. The host has no such process: see [`Pod::take_pid`].
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    fn execs(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Exec>>> {
        lock(&self.execs)
    }

    /// An exec of this container.
    ///
    /// # Errors
    /// When there is none of that id.
    pub fn exec(&self, exec_id: &str) -> Result<Arc<Exec>, TaskError> {
        let missing = || TaskError::NotFound(format!("process does not exist {exec_id}"));
        self.execs().get(exec_id).cloned().ok_or_else(missing)
    }

    /// Adds an exec, to be started later: also to a container that is still to be started, as runc does.
    ///
    /// # Errors
    /// When the container is paused or has ended, or the id is taken.
    pub fn add_exec(&self, exec: Exec) -> Result<(), TaskError> {
        match self.life.phase() {
            Phase::Created | Phase::Running => {}
            Phase::Paused => return Err(precondition("cannot exec in a paused container")),
            Phase::Stopped(_) => return Err(precondition("cannot exec in a stopped container")),
        }
        let mut execs = self.execs();
        if execs.contains_key(&exec.id) {
            return Err(TaskError::AlreadyExists(format!("id {}", exec.id)));
        }
        execs.insert(exec.id.clone(), Arc::new(exec));
        Ok(())
    }

    /// Waits in the background for the first process's end, also of one that is never started.
    pub fn watch(self: &Arc<Self>, sandbox: &Arc<Sandbox>, publisher: &Publisher) {
        let (container, sandbox, publisher) = (Arc::clone(self), Arc::clone(sandbox), publisher.clone());
        tokio::spawn(async move {
            let waited = container.agent().wait(&container.id, "").await;
            let status = status(&waited, &sandbox, container.killed.load(Ordering::Acquire));
            let _turn = container.turn.lock().await;
            container.io.end_input();
            let collect = async {
                let collect = container.pod.volumes.container_exited(&container.id);
                if tokio::time::timeout(COLLECT_DEADLINE, collect).await.is_err() {
                    tracing::warn!(container = container.id, "the termination log takes too long");
                }
            };
            tokio::join!(collect, container.io.settle(), container.execs_ended());
            if is_oom_killed(&waited, &sandbox) {
                container.tell_oom(&publisher);
            }
            let exit = Exit::now(status);
            container.life.set(Phase::Stopped(exit));
            publisher.publish(&exit_event(&container.id, &container.id, container.pid(), exit));
            // containerd waits for the end of the outputs before it deletes the container. With the first process all
            // others have ended; a guest that keeps an output open all the same is not waited for.
            container.io.close_when_quiet().await;
        });
    }

    /// Waits, for a bounded time, until the ends of all execs that run are told. containerd is to hear of a container's end
    /// last, as of runc's: with it the container is over.
    async fn execs_ended(&self) {
        let execs: Vec<_> = self.execs().values().cloned().collect();
        let ended = futures_util::future::join_all(execs.iter().map(|exec| exec.told()));
        if tokio::time::timeout(EXECS_DEADLINE, ended).await.is_err() {
            tracing::warn!(container = self.id, "an exec does not end although its container has ended");
        }
    }

    /// Tells containerd, once, that the container was short of memory.
    pub fn tell_oom(&self, publisher: &Publisher) {
        if !self.oom_told.swap(true, Ordering::AcqRel) {
            let mut event = TaskOOM::new();
            event.container_id.clone_from(&self.id);
            publisher.publish(&event);
        }
    }

    /// Starts the first process.
    ///
    /// # Errors
    /// When it was started before, or cannot be.
    pub async fn start(&self, publisher: &Publisher) -> Result<u32, TaskError> {
        let _turn = self.turn.lock().await;
        match self.life.phase() {
            Phase::Created => {}
            Phase::Stopped(_) => return Err(precondition("cannot start a container that has stopped")),
            _ => return Err(precondition("cannot start a running container")),
        }
        let request = self.process("");
        self.agent().call("start a container", self.agent().client().start(request)).await?;
        self.life.set(Phase::Running);
        let mut event = TaskStart::new();
        event.container_id.clone_from(&self.id);
        event.pid = self.pid();
        publisher.publish(&event);
        Ok(self.pid())
    }

    /// Sends a signal to the first process, or to all.
    ///
    /// # Errors
    /// When it has ended, or there is no such signal.
    pub async fn kill(self: &Arc<Self>, signal: u32, all: bool) -> Result<(), TaskError> {
        if self.life.exit().is_some() {
            if signal == KILL {
                self.removal.press(&self.pod);
            }
            return Err(finished());
        }
        // Whatever the guest answers: it may refuse, or say what is not so.
        if signal == KILL && !self.killed.swap(true, Ordering::AcqRel) {
            let container = Arc::clone(self);
            tokio::spawn(async move {
                container.pod.supervisor.see_to_the_end_of(container.agent(), container.life.ended()).await;
            });
        }
        kill(&self.pod, &self.id, "", signal, all).await
    }

    /// Freezes every process, or lets them go on.
    ///
    /// # Errors
    /// When the container is in the wrong state.
    pub async fn pause(&self, frozen: bool, publisher: &Publisher) -> Result<(), TaskError> {
        let _turn = self.turn.lock().await;
        let request = self.agent().request(ContainerRequest { container_id: self.id.clone() });
        match (self.life.phase(), frozen) {
            (Phase::Running, true) => {
                self.agent().call("pause a container", self.agent().client().pause(request)).await?;
                self.life.set(Phase::Paused);
                let mut event = TaskPaused::new();
                event.container_id.clone_from(&self.id);
                publisher.publish(&event);
            }
            (Phase::Paused, false) => {
                self.agent().call("resume a container", self.agent().client().resume(request)).await?;
                self.life.set(Phase::Running);
                let mut event = TaskResumed::new();
                event.container_id.clone_from(&self.id);
                publisher.publish(&event);
            }
            (phase, _) => {
                let verb = if frozen { "pause" } else { "resume" };
                return Err(precondition(&format!("cannot {verb} a container that is {:?}", phase.status())));
            }
        }
        Ok(())
    }

    /// What it may use now, as far as its limits say.
    #[must_use]
    pub fn asked(&self) -> Asked {
        if self.life.exit().is_some() { Asked::default() } else { lock(&self.limits).asked() }
    }

    /// All its limits.
    #[must_use]
    pub fn limits(&self) -> ContainerLimits {
        lock(&self.limits).clone()
    }

    /// Changes the container's limits: `resources` is the OCI spec's LinuxResources as JSON, `limits` what they become by it.
    ///
    /// # Errors
    /// When the container has ended or the guest refuses.
    pub async fn update(&self, resources: Vec<u8>, limits: ContainerLimits) -> Result<(), TaskError> {
        if self.life.exit().is_some() {
            return Err(finished());
        }
        let request = UpdateRequest { container_id: self.id.clone(), resources: resources.into() };
        self.agent().call("update a container", self.agent().client().update(request)).await?;
        *lock(&self.limits) = limits;
        Ok(())
    }

    /// Gives the terminal another size.
    ///
    /// # Errors
    /// When there is none.
    pub async fn resize(&self, columns: u32, rows: u32) -> Result<(), TaskError> {
        if self.life.exit().is_some() {
            return Err(precondition("cannot resize a stopped container"));
        }
        if !self.terminal {
            return Ok(());
        }
        resize(self.agent(), &self.id, "", columns, rows).await
    }

    /// Closes the first process's input.
    pub fn close_stdin(&self) {
        self.io.close_stdin();
    }

    /// Removes the container from the machine. One that was never started is killed first.
    ///
    /// # Errors
    /// While it runs, or when the guest cannot remove it.
    pub async fn delete(self: &Arc<Self>, publisher: &Publisher) -> Result<Exit, TaskError> {
        match self.life.phase() {
            Phase::Stopped(_) => {}
            Phase::Created => self.put_down().await,
            _ => return Err(precondition("cannot delete a running process")),
        }
        let Some(exit) = self.life.exit() else {
            return Err(TaskError::Failed(format!("the container {} does not end after SIGKILL", self.id)));
        };
        self.removal.begin(&self.pod);
        let _turn = self.turn.lock().await;
        if self.removal.is_done() {
            return Err(TaskError::NotFound(format!("container {}", self.id)));
        }
        self.io.drain().await;
        let execs = std::mem::take(&mut *self.execs());
        for exec in execs.into_values() {
            exec.io_drain().await;
        }
        let request = self.agent().request(self.process(""));
        let deleted = self.agent().call("delete a container", self.agent().client().delete(request)).await;
        deleted_or_gone(deleted)?;
        self.pod.volumes.container_removed(&self.id).await;
        let layers = std::mem::take(&mut *lock(&self.layers));
        self.pod.extents.release(self.agent(), layers).await;
        self.removal.done();
        self.pod.layers.collect();
        let mut event = TaskDelete::new();
        event.container_id.clone_from(&self.id);
        event.pid = self.pid();
        event.exit_status = exit.status;
        event.exited_at = MessageField::some(timestamp(exit.at));
        publisher.publish(&event);
        Ok(exit)
    }

    /// Deletes an exec that has ended or was never started.
    ///
    /// # Errors
    /// While it runs, or when there is none of that id.
    pub async fn delete_exec(&self, exec_id: &str) -> Result<Exit, TaskError> {
        let exec = self.exec(exec_id)?;
        let exit = exec.delete(self).await?;
        self.execs().remove(exec_id);
        Ok(exit)
    }

    async fn put_down(self: &Arc<Self>) {
        if let Err(error) = self.kill(KILL, true).await {
            tracing::warn!(container = self.id, "cannot kill a container that was never started: {error}");
        }
        // The supervisor ends the machine if the guest does not obey.
        let _ = tokio::time::timeout(deadline::KILLED + deadline::REMOVAL, self.life.ended()).await;
    }

    fn process(&self, exec_id: &str) -> ProcessRequest {
        ProcessRequest { container_id: self.id.clone(), exec_id: exec_id.to_owned() }
    }
}

async fn resize(agent: &Agent, id: &str, exec_id: &str, columns: u32, rows: u32) -> Result<(), TaskError> {
    let request =
        ResizeTtyRequest { container_id: id.to_owned(), exec_id: exec_id.to_owned(), columns, rows };
    agent.call("resize a terminal", agent.client().resize_tty(request)).await?;
    Ok(())
}
