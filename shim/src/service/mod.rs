//! What containerd asks of a shim: the task API, served as `containerd.task.v2.Task` and as `containerd.task.v3.Task`, and
//! the sandbox API, `containerd.runtime.sandbox.v1.Sandbox`.
//!
//! Everything that changes something runs in a task of its own: a containerd that goes away in the middle of a call
//! does not cut it in half.

mod convert;
mod create;
mod ending;
mod handlers;
mod making;
mod sandbox_api;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard};

use containerd_shim_protos::events::task::{TaskDelete, TaskExecAdded};
use containerd_shim_protos::sandbox_async::create_sandbox;
use containerd_shim_protos::shim_async::create_task;
use oci_spec::runtime::LinuxResources;
use protobuf::MessageField;
use tokio::sync::Notify;

use crate::config::Config;
use crate::error::{TaskError, chain};
use crate::events::{Publisher, timestamp};
use crate::process::{Exit, Phase};
use crate::sandbox::{Api, Asked, KILLED, Sandbox};
use crate::state::{State, StateDir};
use crate::sync::lock;
use crate::task::{Container, Exec};
use making::Making;

/// Services that a shim can have and this one has not.
const NOT_IMPLEMENTED: [&str; 3] = [
    "grpc.health.v1.Health",
    "containerd.services.streaming.v1.Streaming",
    "containerd.services.transfer.v1.Transfer",
];

type Answer<T> = ttrpc::Result<T>;

/// Runs a call to its end whatever becomes of the caller.
async fn whole<T: Send + 'static>(
    call: &'static str,
    id: &str,
    work: impl Future<Output = Result<T, TaskError>> + Send + 'static,
) -> Answer<T> {
    let result = tokio::spawn(work).await;
    let result = result.unwrap_or_else(|_| Err(TaskError::Failed(format!("{call} was cut short"))));
    if let Err(error) = &result {
        tracing::debug!("{call} {id}: {error}");
    }
    Ok(result?)
}

/// What a shim serves: one sandbox and its containers.
#[derive(Debug)]
pub struct Service {
    config: Arc<Config>,
    publisher: Publisher,
    directory: StateDir,
    state: State,
    tasks: Mutex<Tasks>,
    /// One change of limits at a time.
    resizing: tokio::sync::Mutex<()>,
    /// containerd has said goodbye while something was on its way out.
    goodbye: AtomicBool,
    /// Told when the last task is gone and containerd has said goodbye.
    pub ended: Notify,
}

#[derive(Debug, Default)]
struct Tasks {
    sandbox: Entry<Sandbox>,
    containers: BTreeMap<String, Entry<Container>>,
}

/// A place for a task: ids are taken from the moment a creation begins.
#[derive(Debug, Default)]
enum Entry<T> {
    #[default]
    Empty,
    Making(Making),
    Ready(Arc<T>),
}

/// What a call is about.
enum Target {
    Sandbox(Arc<Sandbox>),
    Container(Arc<Container>),
    Exec(Arc<Container>, Arc<Exec>),
}

impl Target {
    /// What containerd takes for its pid.
    fn pid(&self) -> u32 {
        match self {
            Self::Sandbox(sandbox) => sandbox.pid(),
            Self::Container(container) | Self::Exec(container, _) => container.pid(),
        }
    }
}

impl Service {
    /// A service without tasks.
    #[must_use]
    pub fn new(config: Config, publisher: Publisher, directory: StateDir, state: State) -> Self {
        Self {
            config: Arc::new(config),
            publisher,
            directory,
            state,
            tasks: Mutex::default(),
            resizing: tokio::sync::Mutex::default(),
            goodbye: AtomicBool::new(false),
            ended: Notify::new(),
        }
    }

    /// The ttrpc services, the task API's under both names.
    #[must_use]
    pub fn methods(self: &Arc<Self>) -> HashMap<String, ttrpc::r#async::Service> {
        let mut all = create_sandbox(Arc::new(sandbox_api::Handler::new(Arc::clone(self))));
        for name in ["containerd.task.v2.Task", "containerd.task.v3.Task"] {
            let handler = Arc::new(handlers::Handler::new(Arc::clone(self)));
            all.extend(create_task(handler).into_values().map(|service| (name.to_owned(), service)));
        }
        // A client that probes for one is to hear that it is not implemented; of a service that it does not know at all the
        // ttrpc library says that the argument is invalid.
        for name in NOT_IMPLEMENTED {
            let nothing = ttrpc::r#async::Service { methods: HashMap::new(), streams: HashMap::new() };
            all.insert(name.to_owned(), nothing);
        }
        all
    }

    /// What is being made under this id.
    fn making(&self, id: &str) -> Option<Making> {
        let tasks = self.tasks();
        match (&tasks.sandbox, tasks.containers.get(id)) {
            (Entry::Making(making), _) if making.id == id => Some(making.clone()),
            (_, Some(Entry::Making(making))) => Some(making.clone()),
            _ => None,
        }
    }

    /// Calls off what is being made under this id, and waits until nothing of it is left. False if nothing was.
    async fn call_off(&self, id: &str) -> Result<bool, TaskError> {
        match self.making(id) {
            Some(making) => making.call_off().await.map(|()| true),
            None => Ok(false),
        }
    }

    fn tasks(&self) -> MutexGuard<'_, Tasks> {
        lock(&self.tasks)
    }

    fn sandbox(&self) -> Result<Arc<Sandbox>, TaskError> {
        match &self.tasks().sandbox {
            Entry::Ready(sandbox) => Ok(Arc::clone(sandbox)),
            _ => Err(TaskError::FailedPrecondition("the sandbox is not there".to_owned())),
        }
    }

    fn target(&self, id: &str, exec_id: &str) -> Result<Target, TaskError> {
        let container = {
            let tasks = self.tasks();
            match (&tasks.sandbox, tasks.containers.get(id)) {
                (_, Some(Entry::Ready(container))) => Arc::clone(container),
                (Entry::Ready(sandbox), _) if sandbox.id == id && sandbox.api == Api::Task => {
                    if exec_id.is_empty() {
                        return Ok(Target::Sandbox(Arc::clone(sandbox)));
                    }
                    return Err(TaskError::NotFound(format!("process does not exist {exec_id}")));
                }
                _ => return Err(TaskError::NotFound(format!("container {id} not created"))),
            }
        };
        if exec_id.is_empty() {
            return Ok(Target::Container(container));
        }
        let exec = container.exec(exec_id)?;
        Ok(Target::Exec(container, exec))
    }

    async fn start(self: &Arc<Self>, id: &str, exec_id: &str) -> Result<u32, TaskError> {
        match self.target(id, exec_id)? {
            Target::Sandbox(sandbox) => self.start_sandbox(&sandbox).await,
            Target::Container(container) => container.start(&self.publisher).await,
            Target::Exec(container, exec) => exec.start(&container, &self.sandbox()?, &self.publisher).await,
        }
    }

    async fn start_sandbox(self: &Arc<Self>, sandbox: &Sandbox) -> Result<u32, TaskError> {
        sandbox.start(&self.publisher).await?;
        self.watch_oom(sandbox);
        Ok(sandbox.pid())
    }

    fn watch_oom(self: &Arc<Self>, sandbox: &Sandbox) {
        let Ok(pod) = sandbox.pod() else { return };
        let service = Arc::downgrade(self);
        tokio::spawn(async move {
            pod.watch_oom(|id| {
                let Some(service) = service.upgrade() else { return };
                // The guest names the container; only one that is known counts.
                if let Ok(Target::Container(container)) = service.target(id, "") {
                    container.tell_oom(&service.publisher);
                }
            })
            .await;
        });
    }

    async fn delete(&self, id: &str, exec_id: &str) -> Result<(u32, Exit), TaskError> {
        let called_off = exec_id.is_empty() && self.call_off(id).await?;
        let target = match self.target(id, exec_id) {
            // What was never made has no pid.
            Err(TaskError::NotFound(_)) if called_off => return Ok((0, Exit::now(KILLED))),
            target => target?,
        };
        let pid = target.pid();
        let exit = match target {
            Target::Sandbox(sandbox) => self.delete_sandbox(&sandbox).await?,
            Target::Container(container) => {
                let exit = container.delete(&self.publisher).await?;
                self.tasks().containers.remove(id);
                exit
            }
            Target::Exec(container, _) => container.delete_exec(exec_id).await?,
        };
        Ok((pid, exit))
    }

    async fn delete_sandbox(&self, sandbox: &Arc<Sandbox>) -> Result<Exit, TaskError> {
        let exit = match sandbox.life().phase() {
            Phase::Stopped(exit) => exit,
            Phase::Created => {
                sandbox.kill(9)?;
                sandbox.life().ended().await
            }
            _ => return Err(TaskError::FailedPrecondition("cannot delete a running process".to_owned())),
        };
        if let Err(error) = self.directory.remove() {
            tracing::warn!("cannot remove the pod's state: {error}");
        }
        self.tasks().sandbox = Entry::Empty;
        let mut event = TaskDelete::new();
        event.container_id.clone_from(&sandbox.id);
        event.pid = sandbox.pid();
        event.exit_status = exit.status;
        event.exited_at = MessageField::some(timestamp(exit.at));
        sandbox.tell(&self.publisher, &event);
        Ok(exit)
    }

    /// Gives a container other limits, and its machine the memory and the CPU time for them.
    async fn update(&self, container: &Arc<Container>, resources: Vec<u8>) -> Result<(), TaskError> {
        let parsed: LinuxResources = serde_json::from_slice(&resources).map_err(|error| {
            TaskError::InvalidArgument(format!("the new limits of the container {}: {error}", container.id))
        })?;
        let _turn = self.resizing.lock().await;
        let others = self.asked_by_all_but(&container.id);
        let (sandbox, had) = (self.sandbox()?, container.limits());
        let limits = had.changed_by(&parsed).map_err(TaskError::failed)?;
        let (from, to) = (had.asked(), limits.asked());
        sandbox.can_give(self.config.sizing.overhead_mib, from, to, others)?;
        let all = others.plus(to);
        // The guest has the memory before its containers may use it, and gives it up when they no longer may. Where memory is
        // not what changes, the guest keeps what it has: containers that are still to come may need it.
        let more = !from.unbounded && (to.unbounded || to.memory_bytes > from.memory_bytes);
        let less = !to.unbounded && (from.unbounded || to.memory_bytes < from.memory_bytes);
        let resized = async {
            if more {
                sandbox.give_memory(all, &self.config).await?;
            }
            container.update(resources, limits).await?;
            sandbox.give_cpu_time(all)?;
            if less {
                sandbox.give_memory(all, &self.config).await?;
            }
            Ok(())
        }
        .await;
        if resized.is_err() {
            // Nothing of a resize that fails shall last, and a guest that refuses may have done a part of it.
            let before = others.plus(from);
            let mut back = container.update(had.to_json(), had).await;
            back = back.and(sandbox.give_cpu_time(before));
            if more {
                back = back.and(sandbox.give_memory(before, &self.config).await);
            }
            if let Err(error) = back {
                tracing::warn!(container = container.id, "the limits before the resize: {}", chain(&error));
            }
        }
        resized
    }

    /// Gives a guest that was given other memory than it was born with what its containers may use by now.
    async fn fit_memory(&self, sandbox: &Sandbox) -> Result<(), TaskError> {
        let _turn = self.resizing.lock().await;
        if sandbox.has_the_memory_of_its_birth() {
            return Ok(());
        }
        sandbox.give_memory(self.asked_by_all_but(""), &self.config).await
    }

    /// What the containers that have not ended may use together.
    fn asked_by_all_but(&self, id: &str) -> Asked {
        let tasks = self.tasks();
        let others = tasks.containers.values().filter_map(|entry| match entry {
            Entry::Ready(other) if other.id != id => Some(other.asked()),
            _ => None,
        });
        others.fold(Asked::default(), Asked::plus)
    }

    fn exec(&self, id: &str, exec: Exec) -> Result<(), TaskError> {
        let Target::Container(container) = self.target(id, "")? else {
            return Err(TaskError::FailedPrecondition(
                "the pause container does not run: there is nothing to exec in".to_owned(),
            ));
        };
        let mut event = TaskExecAdded::new();
        event.container_id = id.to_owned();
        event.exec_id.clone_from(&exec.id);
        container.add_exec(exec)?;
        self.publisher.publish(&event);
        Ok(())
    }
}
