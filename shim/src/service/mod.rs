//! containerd's task protocol: one handler, served as `containerd.task.v2.Task` and as `containerd.task.v3.Task`.
//!
//! Everything that changes something runs in a task of its own: a containerd that goes away in the middle of a call
//! does not cut it in half.

mod convert;
mod handlers;

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use containerd_shim_protos::events::task::{TaskCreate, TaskDelete, TaskExecAdded, TaskIO};
use containerd_shim_protos::shim_async::create_task;
use containerd_shim_protos::types::mount::Mount;
use protobuf::MessageField;
use tokio::sync::Notify;

use crate::config::Config;
use crate::error::TaskError;
use crate::events::{Publisher, timestamp};
use crate::process::{Exit, Phase};
use crate::rootfs::RootfsMount;
use crate::sandbox::{Sandbox, plan};
use crate::spec::{self, Kind};
use crate::state::{State, StateDir};
use crate::stdio::Paths;
use crate::task::{self, Container, Exec, Neighbours};

/// What a shim serves: one sandbox and its containers.
#[derive(Debug)]
pub struct Service {
    config: Arc<Config>,
    publisher: Publisher,
    directory: StateDir,
    state: State,
    tasks: Mutex<Tasks>,
    /// Told when the last task is gone and containerd has said goodbye.
    pub ended: Notify,
}

#[derive(Debug, Default)]
struct Tasks {
    sandbox: Slot<Sandbox>,
    containers: BTreeMap<String, Slot<Container>>,
}

/// A place for a task: ids are taken from the moment a creation begins.
#[derive(Debug, Default)]
enum Slot<T> {
    #[default]
    Empty,
    Making,
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

/// A creation as containerd asks for it.
struct Creation {
    request: task::Request,
    mounts: Vec<Mount>,
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
            ended: Notify::new(),
        }
    }

    /// The ttrpc services, under both names.
    #[must_use]
    pub fn methods(self: &Arc<Self>) -> HashMap<String, ttrpc::r#async::Service> {
        ["containerd.task.v2.Task", "containerd.task.v3.Task"]
            .into_iter()
            .flat_map(|name| {
                let handler = Arc::new(handlers::Handler::new(Arc::clone(self)));
                create_task(handler).into_values().map(move |service| (name.to_owned(), service))
            })
            .collect()
    }

    /// Whether there is nothing to serve.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        let tasks = self.tasks();
        matches!(tasks.sandbox, Slot::Empty) && tasks.containers.is_empty()
    }

    fn tasks(&self) -> MutexGuard<'_, Tasks> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sandbox(&self) -> Result<Arc<Sandbox>, TaskError> {
        match &self.tasks().sandbox {
            Slot::Ready(sandbox) => Ok(Arc::clone(sandbox)),
            _ => Err(TaskError::FailedPrecondition("the sandbox is not there".to_owned())),
        }
    }

    fn target(&self, id: &str, exec_id: &str) -> Result<Target, TaskError> {
        let container = {
            let tasks = self.tasks();
            match (&tasks.sandbox, tasks.containers.get(id)) {
                (_, Some(Slot::Ready(container))) => Arc::clone(container),
                (Slot::Ready(sandbox), _) if sandbox.id == id => {
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

    async fn create(&self, creation: Creation) -> Result<u32, TaskError> {
        let id = creation.request.id.clone();
        if !crate::state::is_valid_id(&id) {
            return Err(TaskError::InvalidArgument(format!("{id:?} is not a container id")));
        }
        let spec = spec::load(creation.request.bundle.as_ref()).map_err(TaskError::failed)?;
        let mut event = TaskCreate::new();
        event.container_id.clone_from(&id);
        event.bundle.clone_from(&creation.request.bundle);
        event.rootfs = creation.mounts;
        event.io = MessageField::some(task_io(&creation.request.paths));
        let pid = match spec::kind(&spec).map_err(TaskError::failed)? {
            Kind::Sandbox => self.create_sandbox(creation.request).await?,
            Kind::Container { sandbox_id } => {
                let sandbox = self.sandbox()?;
                if sandbox.id != sandbox_id {
                    return Err(TaskError::InvalidArgument(format!(
                        "the container {id} belongs to the sandbox {sandbox_id}, not to {}",
                        sandbox.id
                    )));
                }
                self.create_container(creation.request, sandbox).await?
            }
        };
        event.pid = pid;
        self.publisher.publish(&event);
        Ok(pid)
    }

    async fn create_sandbox(&self, request: task::Request) -> Result<u32, TaskError> {
        {
            let mut tasks = self.tasks();
            if !matches!(tasks.sandbox, Slot::Empty) {
                return Err(TaskError::AlreadyExists(format!("sandbox {}", request.id)));
            }
            tasks.sandbox = Slot::Making;
        }
        let made = async {
            let plan = plan::read(&request.id, request.bundle.as_ref(), &self.config)?;
            Sandbox::create(
                plan,
                request.bundle,
                &self.config,
                self.state.clone(),
                &self.directory,
                &self.publisher,
            )
            .await
        }
        .await;
        let mut tasks = self.tasks();
        match made {
            Ok(sandbox) => {
                let pid = sandbox.pid();
                tasks.sandbox = Slot::Ready(sandbox);
                Ok(pid)
            }
            Err(error) => {
                tasks.sandbox = Slot::Empty;
                Err(error)
            }
        }
    }

    async fn create_container(
        &self,
        request: task::Request,
        sandbox: Arc<Sandbox>,
    ) -> Result<u32, TaskError> {
        let id = request.id.clone();
        let pod = sandbox.pod()?;
        {
            let mut tasks = self.tasks();
            if tasks.containers.contains_key(&id) {
                return Err(TaskError::AlreadyExists(format!("container {id}")));
            }
            tasks.containers.insert(id.clone(), Slot::Making);
        }
        let made = task::create(request, pod, &self.config.policy, &self.neighbours()).await;
        let mut tasks = self.tasks();
        match made {
            Ok(container) => {
                let container = Arc::new(container);
                container.watch(&sandbox, &self.publisher);
                let pid = container.pid();
                tasks.containers.insert(id, Slot::Ready(container));
                Ok(pid)
            }
            Err(error) => {
                tasks.containers.remove(&id);
                Err(error)
            }
        }
    }

    /// The containers that are there.
    fn neighbours(&self) -> Neighbours {
        let tasks = self.tasks();
        let ready = tasks.containers.values().filter_map(|slot| match slot {
            Slot::Ready(container) => Some((container.pid(), container.id.clone())),
            _ => None,
        });
        ready.collect()
    }

    async fn start(self: &Arc<Self>, id: &str, exec_id: &str) -> Result<u32, TaskError> {
        match self.target(id, exec_id)? {
            Target::Sandbox(sandbox) => {
                sandbox.start().await?;
                self.watch_oom(&sandbox);
                let mut event = containerd_shim_protos::events::task::TaskStart::new();
                event.container_id.clone_from(&sandbox.id);
                event.pid = sandbox.pid();
                self.publisher.publish(&event);
                Ok(sandbox.pid())
            }
            Target::Container(container) => container.start(&self.publisher).await,
            Target::Exec(container, exec) => exec.start(&container, &self.sandbox()?, &self.publisher).await,
        }
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
        let target = self.target(id, exec_id)?;
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
        self.tasks().sandbox = Slot::Empty;
        let mut event = TaskDelete::new();
        event.container_id.clone_from(&sandbox.id);
        event.pid = sandbox.pid();
        event.exit_status = exit.status;
        event.exited_at = MessageField::some(timestamp(exit.at));
        self.publisher.publish(&event);
        Ok(exit)
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

    /// containerd is done with the shim; it ends unless other tasks live.
    fn shutdown(&self) {
        if self.is_idle() {
            self.ended.notify_one();
        }
    }
}

fn task_io(paths: &Paths) -> TaskIO {
    let mut io = TaskIO::new();
    io.stdin.clone_from(&paths.stdin);
    io.stdout.clone_from(&paths.stdout);
    io.stderr.clone_from(&paths.stderr);
    io.terminal = paths.terminal;
    io
}

/// containerd's mounts in our form.
fn rootfs_mounts(mounts: &[Mount]) -> Vec<RootfsMount> {
    let convert = |mount: &Mount| RootfsMount {
        kind: mount.type_.clone(),
        source: mount.source.clone(),
        options: mount.options.clone(),
    };
    mounts.iter().map(convert).collect()
}

/// A bundle's path as containerd gives it.
///
/// # Errors
/// When it is not absolute.
fn bundle(path: &str) -> Result<PathBuf, TaskError> {
    let path = PathBuf::from(path);
    if path.is_absolute() {
        Ok(path)
    } else {
        Err(TaskError::InvalidArgument(format!("the bundle {} is not an absolute path", path.display())))
    }
}
