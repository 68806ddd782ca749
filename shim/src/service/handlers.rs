//! The calls of the task API, one by one.

use std::sync::Arc;

use async_trait::async_trait;
use containerd_shim_protos::api::{
    CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest,
    CreateTaskResponse, DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, KillRequest, PauseRequest,
    PidsRequest, PidsResponse, ProcessInfo, ResizePtyRequest, ResumeRequest, ShutdownRequest, StartRequest,
    StartResponse, StateRequest, StateResponse, StatsRequest, StatsResponse, UpdateTaskRequest, WaitRequest,
    WaitResponse,
};
use containerd_shim_protos::shim_async::Task;
use protobuf::MessageField;
use tokio_util::sync::CancellationToken;
use ttrpc::r#async::TtrpcContext;

use super::create::{Creation, bundle, rootfs_mounts};
use super::{Answer, Service, Target, convert, whole};
use crate::error::TaskError;
use crate::events::timestamp;
use crate::stats;
use crate::stdio::Paths;
use crate::task::{self, Exec};

/// The generated trait's implementation.
pub(super) struct Handler(Arc<Service>);

impl Handler {
    pub(super) fn new(service: Arc<Service>) -> Self {
        Self(service)
    }
}

#[async_trait]
impl Task for Handler {
    async fn state(&self, _: &TtrpcContext, request: StateRequest) -> Answer<StateResponse> {
        Ok(convert::state(&self.0.target(&request.id, &request.exec_id)?, request))
    }

    async fn create(&self, _: &TtrpcContext, request: CreateTaskRequest) -> Answer<CreateTaskResponse> {
        if !request.checkpoint.is_empty() {
            return Err(TaskError::NotImplemented("restoring a checkpoint".to_owned()).into());
        }
        bundle(&request.bundle)?;
        let service = Arc::clone(&self.0);
        let id = request.id.clone();
        let creation = Creation {
            request: task::Request {
                id: request.id,
                bundle: request.bundle,
                rootfs: rootfs_mounts(&request.rootfs),
                paths: Paths {
                    stdin: request.stdin,
                    stdout: request.stdout,
                    stderr: request.stderr,
                    terminal: request.terminal,
                },
            },
            mounts: request.rootfs,
            cancelled: CancellationToken::new(),
        };
        // This future is dropped when the caller's patience is over or its connection breaks: then nobody will ever hear
        // of what is made.
        let caller_gone = creation.cancelled.clone().drop_guard();
        let mut response = CreateTaskResponse::new();
        let created = whole("Create", &id, async move { service.create(creation).await }).await;
        caller_gone.disarm();
        response.pid = created?;
        Ok(response)
    }

    async fn start(&self, _: &TtrpcContext, request: StartRequest) -> Answer<StartResponse> {
        let service = Arc::clone(&self.0);
        let id = request.id.clone();
        let work = async move { service.start(&request.id, &request.exec_id).await };
        let mut response = StartResponse::new();
        response.pid = whole("Start", &id, work).await?;
        Ok(response)
    }

    async fn delete(&self, _: &TtrpcContext, request: DeleteRequest) -> Answer<DeleteResponse> {
        let service = Arc::clone(&self.0);
        let id = request.id.clone();
        let work = async move { service.delete(&request.id, &request.exec_id).await };
        let (pid, exit) = whole("Delete", &id, work).await?;
        let mut response = DeleteResponse::new();
        response.pid = pid;
        response.exit_status = exit.status;
        response.exited_at = MessageField::some(timestamp(exit.at));
        Ok(response)
    }

    async fn pids(&self, _: &TtrpcContext, request: PidsRequest) -> Answer<PidsResponse> {
        // The machine is the only process of the pod on the host; pids of the guest mean nothing here. containerd looks for
        // the number that State tells, which for a container is another.
        let mut pids = vec![self.0.target(&request.id, "")?.pid()];
        pids.extend(self.0.sandbox().map(|sandbox| sandbox.pid()).ok().filter(|pid| !pids.contains(pid)));
        let process = |pid| {
            let mut process = ProcessInfo::new();
            process.pid = pid;
            process
        };
        let mut response = PidsResponse::new();
        response.processes = pids.into_iter().map(process).collect();
        Ok(response)
    }

    async fn pause(&self, _: &TtrpcContext, request: PauseRequest) -> Answer<Empty> {
        let service = Arc::clone(&self.0);
        let target = self.0.target(&request.id, "")?;
        whole("Pause", &request.id, async move { freeze(&service, target, true).await }).await?;
        Ok(Empty::new())
    }

    async fn resume(&self, _: &TtrpcContext, request: ResumeRequest) -> Answer<Empty> {
        let service = Arc::clone(&self.0);
        let target = self.0.target(&request.id, "")?;
        whole("Resume", &request.id, async move { freeze(&service, target, false).await }).await?;
        Ok(Empty::new())
    }

    async fn checkpoint(&self, _: &TtrpcContext, _: CheckpointTaskRequest) -> Answer<Empty> {
        Err(TaskError::NotImplemented("checkpointing a container".to_owned()).into())
    }

    async fn kill(&self, _: &TtrpcContext, request: KillRequest) -> Answer<Empty> {
        let (signal, all) = (request.signal, request.all);
        let ends = request.exec_id.is_empty() && matches!(signal, 2 | 9 | 15);
        let called_off = ends && self.0.call_off(&request.id).await?;
        let target = match self.0.target(&request.id, &request.exec_id) {
            Err(TaskError::NotFound(_)) if called_off => return Ok(Empty::new()),
            target => target?,
        };
        let work = async move {
            match target {
                Target::Sandbox(sandbox) => sandbox.kill(signal),
                Target::Container(container) => container.kill(signal, all).await,
                Target::Exec(container, exec) => exec.kill(&container, signal).await,
            }
        };
        whole("Kill", &request.id, work).await?;
        Ok(Empty::new())
    }

    async fn exec(&self, _: &TtrpcContext, request: ExecProcessRequest) -> Answer<Empty> {
        if !crate::state::is_valid_id(&request.exec_id) {
            let text = format!("{:?} is not a process id", request.exec_id);
            return Err(TaskError::InvalidArgument(text).into());
        }
        let paths = Paths {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            terminal: request.terminal,
        };
        let process = request.spec.into_option().unwrap_or_default().value;
        let process = crate::spec::exec_process(&process).map_err(|error| {
            let (id, exec_id) = (&request.id, &request.exec_id);
            TaskError::InvalidArgument(format!(
                "the process {exec_id} for the container {id} is none of the OCI spec, as JSON: {error}"
            ))
        })?;
        self.0.exec(&request.id, Exec::new(request.exec_id, process, paths))?;
        Ok(Empty::new())
    }

    async fn resize_pty(&self, _: &TtrpcContext, request: ResizePtyRequest) -> Answer<Empty> {
        let target = self.0.target(&request.id, &request.exec_id)?;
        let (columns, rows) = (request.width, request.height);
        let work = async move {
            match target {
                Target::Sandbox(_) => Ok(()),
                Target::Container(container) => container.resize(columns, rows).await,
                Target::Exec(container, exec) => exec.resize(&container, columns, rows).await,
            }
        };
        whole("ResizePty", &request.id, work).await?;
        Ok(Empty::new())
    }

    async fn close_io(&self, _: &TtrpcContext, request: CloseIORequest) -> Answer<Empty> {
        let target = self.0.target(&request.id, &request.exec_id)?;
        if request.stdin {
            match target {
                Target::Sandbox(_) => {}
                Target::Container(container) => container.close_stdin(),
                Target::Exec(_, exec) => exec.close_stdin(),
            }
        }
        Ok(Empty::new())
    }

    async fn update(&self, _: &TtrpcContext, request: UpdateTaskRequest) -> Answer<Empty> {
        let target = self.0.target(&request.id, "")?;
        let resources = request.resources.into_option().unwrap_or_default().value;
        let service = Arc::clone(&self.0);
        let work = async move {
            match target {
                Target::Container(container) => service.update(&container, resources).await,
                _ => Err(TaskError::NotImplemented("changing the size of a pod's machine".to_owned())),
            }
        };
        whole("Update", &request.id, work).await?;
        Ok(Empty::new())
    }

    async fn wait(&self, _: &TtrpcContext, request: WaitRequest) -> Answer<WaitResponse> {
        let target = self.0.target(&request.id, &request.exec_id)?;
        let exit = match &target {
            Target::Sandbox(sandbox) => sandbox.life().ended().await,
            Target::Container(container) => container.life().ended().await,
            Target::Exec(_, exec) => exec.life().ended().await,
        };
        let mut response = WaitResponse::new();
        response.exit_status = exit.status;
        response.exited_at = MessageField::some(timestamp(exit.at));
        Ok(response)
    }

    async fn stats(&self, _: &TtrpcContext, request: StatsRequest) -> Answer<StatsResponse> {
        let metrics = match self.0.target(&request.id, "")? {
            Target::Sandbox(_) => stats::of_the_unknown(false),
            Target::Container(container) | Target::Exec(container, _) => container.stats().await?,
        };
        let any = stats::any(&metrics).map_err(TaskError::failed)?;
        let mut response = StatsResponse::new();
        response.stats = MessageField::some(any);
        Ok(response)
    }

    async fn connect(&self, _: &TtrpcContext, request: ConnectRequest) -> Answer<ConnectResponse> {
        // Without a task this still tells containerd which shim it talks to.
        tracing::debug!("containerd connects for {}", request.id);
        let mut response = ConnectResponse::new();
        response.shim_pid = std::process::id();
        response.task_pid = self.0.target(&request.id, "").map(|target| target.pid()).unwrap_or_default();
        Ok(response)
    }

    async fn shutdown(&self, _: &TtrpcContext, _: ShutdownRequest) -> Answer<Empty> {
        self.0.shutdown();
        Ok(Empty::new())
    }
}

async fn freeze(service: &Service, target: Target, frozen: bool) -> Result<(), TaskError> {
    match target {
        Target::Sandbox(sandbox) => sandbox.pause(frozen).await,
        Target::Container(container) | Target::Exec(container, _) => {
            container.pause(frozen, &service.publisher).await
        }
    }
}
