//! The creation of the sandbox and its containers.

use std::path::PathBuf;
use std::sync::Arc;

use containerd_shim_protos::events::task::{TaskCreate, TaskIO};
use containerd_shim_protos::types::mount::Mount;
use protobuf::MessageField;
use tokio_util::sync::CancellationToken;

use super::making::Making;
use super::{Entry, Service};
use crate::error::{TaskError, chain};
use crate::rootfs::RootfsMount;
use crate::sandbox::plan::Plan;
use crate::sandbox::{self, Api, Sandbox};
use crate::spec::{self, Kind};
use crate::stdio::Paths;
use crate::task::{self, Neighbours};

/// A creation as containerd asks for it.
pub(super) struct Creation {
    pub request: task::Request,
    pub mounts: Vec<Mount>,
    /// Told when nobody wants it any more.
    pub cancelled: CancellationToken,
}

impl Service {
    pub(super) async fn create(&self, creation: Creation) -> Result<u32, TaskError> {
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
        match spec::kind(&spec).map_err(TaskError::failed)? {
            Kind::Sandbox => {
                let plan = || Plan::new(sandbox::Request::from_spec(&id, &spec), &self.config);
                let bundle = creation.request.bundle;
                self.create_sandbox(&id, bundle, Api::Task, plan, &creation.cancelled, event).await
            }
            Kind::Container { sandbox_id } => {
                let sandbox = self.sandbox()?;
                if sandbox.id != sandbox_id {
                    return Err(TaskError::InvalidArgument(format!(
                        "the container {id} belongs to the sandbox {sandbox_id}, not to {}",
                        sandbox.id
                    )));
                }
                self.create_container(creation.request, sandbox, &creation.cancelled, event).await
            }
        }
    }

    /// Makes the sandbox; `event` is what containerd hears of it if it is a task.
    pub(super) async fn create_sandbox(
        &self,
        id: &str,
        bundle: String,
        api: Api,
        plan: impl FnOnce() -> Result<Plan, TaskError>,
        cancelled: &CancellationToken,
        mut event: TaskCreate,
    ) -> Result<u32, TaskError> {
        let (making, _made) = Making::new(id, cancelled);
        {
            let mut tasks = self.tasks();
            if !matches!(tasks.sandbox, Entry::Empty) {
                return Err(TaskError::AlreadyExists(format!("sandbox {id}")));
            }
            tasks.sandbox = Entry::Making(making);
        }
        let made = async {
            let state = self.state.clone();
            let sandbox =
                Sandbox::create(plan()?, bundle, api, &self.config, state, &self.directory, cancelled)
                    .await?;
            event.pid = sandbox.pid();
            // Before anybody can hear of its end.
            sandbox.tell(&self.publisher, &event);
            let watched = tokio::spawn(Arc::clone(&sandbox).watch(self.publisher.clone()));
            if cancelled.is_cancelled() {
                // It came to be in the very moment in which nobody wanted it any more.
                sandbox.kill(9)?;
                let _ = watched.await;
                return Err(TaskError::Failed("the creation of the sandbox was called off".to_owned()));
            }
            Ok(sandbox)
        }
        .await;
        match made {
            Ok(sandbox) => {
                let pid = sandbox.pid();
                self.tasks().sandbox = Entry::Ready(sandbox);
                Ok(pid)
            }
            Err(error) => {
                self.tasks().sandbox = Entry::Empty;
                self.end_after_goodbye();
                Err(error)
            }
        }
    }

    async fn create_container(
        &self,
        request: task::Request,
        sandbox: Arc<Sandbox>,
        cancelled: &CancellationToken,
        mut event: TaskCreate,
    ) -> Result<u32, TaskError> {
        let id = request.id.clone();
        let pod = sandbox.pod()?;
        let (making, _made) = Making::new(&id, cancelled);
        {
            let mut tasks = self.tasks();
            if tasks.containers.contains_key(&id) {
                return Err(TaskError::AlreadyExists(format!("container {id}")));
            }
            tasks.containers.insert(id.clone(), Entry::Making(making));
        }
        let made = task::create(request, pod, &self.config.policy, &self.neighbours(), cancelled).await;
        match made {
            Ok(container) => {
                let container = Arc::new(container);
                let pid = container.pid();
                event.pid = pid;
                // Before anybody can hear of its end.
                self.publisher.publish(&event);
                container.watch(&sandbox, &self.publisher);
                self.tasks().containers.insert(id, Entry::Ready(container));
                // A pod that was given less memory when it had fewer containers.
                if let Err(error) = self.fit_memory(&sandbox).await {
                    tracing::warn!("the pod's guest does not get its memory back: {}", chain(&error));
                }
                Ok(pid)
            }
            Err(error) => {
                self.tasks().containers.remove(&id);
                self.end_after_goodbye();
                Err(error)
            }
        }
    }

    /// The containers that are there.
    fn neighbours(&self) -> Neighbours {
        let tasks = self.tasks();
        let ready = tasks.containers.values().filter_map(|entry| match entry {
            Entry::Ready(container) => Some((container.pid(), container.id.clone())),
            _ => None,
        });
        ready.collect()
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
pub(super) fn rootfs_mounts(mounts: &[Mount]) -> Vec<RootfsMount> {
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
pub(super) fn bundle(path: &str) -> Result<PathBuf, TaskError> {
    let path = PathBuf::from(path);
    if path.is_absolute() {
        Ok(path)
    } else {
        Err(TaskError::InvalidArgument(format!("the bundle {} is not an absolute path", path.display())))
    }
}
