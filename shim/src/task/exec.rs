use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use containerd_shim_protos::events::task::TaskExecStarted;
use ravelin_proto::agent::ExecRequest;

use super::kill::{KILL, kill, remove_from_guest};
use super::{Container, deleted_or_gone, exit_event, finished, precondition, resize, status};
use crate::error::TaskError;
use crate::events::Publisher;
use crate::process::{Exit, Life, Phase};
use crate::sandbox::Sandbox;
use crate::stdio::{Fifos, Io, Paths};
use crate::sync::lock;

/// A further process in a container. In the guest it comes to be when it is started.
#[derive(Debug)]
pub struct Exec {
    /// Its id within the container.
    pub id: String,
    /// Its stdio, as containerd named it.
    pub paths: Paths,
    /// The OCI spec's process, JSON.
    process: Vec<u8>,
    life: Life,
    /// SIGKILL was sent to it.
    killed: AtomicBool,
    io: Mutex<Option<Arc<Io>>>,
    turn: tokio::sync::Mutex<()>,
}

impl Exec {
    /// An exec to be started.
    #[must_use]
    pub fn new(id: String, process: Vec<u8>, paths: Paths) -> Self {
        Self {
            id,
            paths,
            process,
            life: Life::default(),
            killed: AtomicBool::new(false),
            io: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
        }
    }

    /// Its phase and end.
    #[must_use]
    pub fn life(&self) -> &Life {
        &self.life
    }

    fn io(&self) -> Option<Arc<Io>> {
        lock(&self.io).clone()
    }

    /// Starts the process.
    ///
    /// # Errors
    /// When it was started before, or cannot be; then nothing of it stays in the guest.
    pub async fn start(
        self: &Arc<Self>,
        container: &Arc<Container>,
        sandbox: &Arc<Sandbox>,
        publisher: &Publisher,
    ) -> Result<u32, TaskError> {
        let _turn = self.turn.lock().await;
        match self.life.phase() {
            Phase::Created => {}
            Phase::Stopped(_) => return Err(precondition("cannot start a process that has stopped")),
            _ => return Err(precondition("cannot start a running process")),
        }
        let agent = container.agent();
        let fifos = Fifos::open(self.paths.clone()).await.map_err(TaskError::failed)?;
        let ids = fifos.ids(&container.pod.next_stream);
        let request = ExecRequest {
            container_id: container.id.clone(),
            exec_id: self.id.clone(),
            process: self.process.clone().into(),
            stdio: Some(ids),
        };
        let created = async {
            // The agent waits for the streams that are named, so both go at once.
            let streams = async { fifos.connect(agent.machine(), &ids).await.map_err(TaskError::failed) };
            let exec = async {
                let exec = agent.call("create a process", agent.client().exec(agent.request(request))).await;
                exec.map_err(TaskError::from)
            };
            let (io, _) = tokio::try_join!(streams, exec)?;
            let start = agent.request(container.process(&self.id));
            agent.call("start a process", agent.client().start(start)).await?;
            Ok::<Io, TaskError>(io)
        };
        let io = match created.await {
            Ok(io) => Arc::new(io),
            Err(error) => {
                remove_from_guest(&container.pod, &container.id, &self.id).await;
                self.life.set(Phase::Stopped(Exit::now(127)));
                return Err(error);
            }
        };
        *lock(&self.io) = Some(io);
        self.life.set(Phase::Running);
        let mut event = TaskExecStarted::new();
        event.container_id.clone_from(&container.id);
        event.exec_id.clone_from(&self.id);
        event.pid = container.pid();
        publisher.publish(&event);
        self.watch(container, sandbox, publisher);
        Ok(container.pid())
    }

    fn watch(self: &Arc<Self>, container: &Arc<Container>, sandbox: &Arc<Sandbox>, publisher: &Publisher) {
        let (exec, container) = (Arc::clone(self), Arc::clone(container));
        let (sandbox, publisher) = (Arc::clone(sandbox), publisher.clone());
        tokio::spawn(async move {
            let waited = container.agent().wait(&container.id, &exec.id).await;
            let exit = Exit::now(status(&waited, &sandbox, exec.killed.load(Ordering::Acquire)));
            if let Some(io) = exec.io() {
                io.end_input();
                io.settle().await;
            }
            // In this order without a pause: who waits for the end takes it for told.
            exec.life.set(Phase::Stopped(exit));
            publisher.publish(&exit_event(&container.id, &exec.id, container.pid(), exit));
            // A terminal ends with its process, though another one may hold it open. Pipes are read to their ends.
            if exec.paths.terminal
                && let Some(io) = exec.io()
            {
                io.close_when_quiet().await;
            }
        });
    }

    /// Waits until containerd has been told of the end of a process that runs, or is just being started.
    pub(super) async fn told(&self) {
        let phase = {
            let _started = self.turn.lock().await;
            self.life.phase()
        };
        if phase != Phase::Created {
            self.life.ended().await;
        }
    }

    /// Sends the process a signal.
    ///
    /// # Errors
    /// When it does not run.
    pub async fn kill(self: &Arc<Self>, container: &Arc<Container>, signal: u32) -> Result<(), TaskError> {
        match self.life.phase() {
            Phase::Stopped(_) => return Err(finished()),
            Phase::Created => return Err(precondition("process not created")),
            _ => {}
        }
        // Whatever the guest answers: it may refuse, or say what is not so.
        if signal == KILL && !self.killed.swap(true, Ordering::AcqRel) {
            let (exec, container) = (Arc::clone(self), Arc::clone(container));
            tokio::spawn(async move {
                container.pod.supervisor.see_to_the_end_of(container.agent(), exec.life.ended()).await;
            });
        }
        kill(&container.pod, &container.id, &self.id, signal, false).await
    }

    /// Gives the terminal another size.
    ///
    /// # Errors
    /// When the process has ended or the guest refuses.
    pub async fn resize(&self, container: &Container, columns: u32, rows: u32) -> Result<(), TaskError> {
        match self.life.phase() {
            Phase::Stopped(_) => Err(precondition("cannot resize a stopped process")),
            Phase::Created => Ok(()),
            _ if !self.paths.terminal => Ok(()),
            _ => resize(container.agent(), &container.id, &self.id, columns, rows).await,
        }
    }

    /// Closes the process's input.
    pub fn close_stdin(&self) {
        if let Some(io) = self.io() {
            io.close_stdin();
        }
    }

    /// Waits for the rest of the output.
    pub(super) async fn io_drain(&self) {
        if let Some(io) = self.io() {
            io.drain().await;
        }
    }

    /// Removes the process from the guest.
    pub(super) async fn delete(&self, container: &Container) -> Result<Exit, TaskError> {
        let _turn = self.turn.lock().await;
        let exit = match self.life.phase() {
            Phase::Stopped(exit) => exit,
            // It is not in the guest yet.
            Phase::Created => return Ok(Exit::now(0)),
            _ => return Err(precondition("cannot delete a running process")),
        };
        self.io_drain().await;
        let request = container.process(&self.id);
        let agent = container.agent();
        deleted_or_gone(agent.call("delete a process", agent.client().delete(agent.request(request))).await)?;
        Ok(exit)
    }
}
