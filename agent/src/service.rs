//! The gRPC service: each call in a few lines, the work elsewhere.

use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::StreamExt;
use oci_spec::runtime::LinuxResources;
use ravelin_proto::agent as api;
use ravelin_proto::agent::agent_server::Agent as Service;
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

use crate::agent::Agent;
use crate::container::{self, Container};
use crate::error::{AgentError, Result};
use crate::process::{self, Phase};
use crate::sync::blocking;
use crate::{clock, deadline, dial, paths, volumes};

/// Serves the agent to the host.
#[derive(Debug, Clone)]
pub struct AgentService(pub Arc<Agent>);

type Answer<T> = std::result::Result<Response<T>, Status>;

/// Runs a call to its end even if the host hangs up: nothing may be left half made.
async fn whole<T: Send + 'static>(work: impl Future<Output = Result<T>> + Send + 'static) -> Answer<T> {
    match tokio::spawn(work).await {
        Ok(done) => Ok(Response::new(done?)),
        Err(error) => Err(Status::internal(format!("the call failed inside the agent: {error}"))),
    }
}

fn empty(done: Result<()>) -> Answer<api::Empty> {
    done?;
    Ok(Response::new(api::Empty {}))
}

#[tonic::async_trait]
impl Service for AgentService {
    async fn setup_sandbox(
        &self,
        request: Request<api::SetupSandboxRequest>,
    ) -> Answer<api::SetupSandboxResponse> {
        let (agent, deadline) = (Arc::clone(&self.0), deadline::of(&request, deadline::TO_MAKE));
        whole(async move { agent.set_up(request.get_ref(), deadline).await }).await
    }

    async fn add_extent(&self, request: Request<api::AddExtentRequest>) -> Answer<api::Empty> {
        let (agent, deadline) = (Arc::clone(&self.0), deadline::of(&request, deadline::FOR_THE_REST));
        let work =
            async move { agent.add_extent(request.into_inner(), deadline).await.map(|()| api::Empty {}) };
        whole(work).await
    }

    async fn remove_extent(&self, request: Request<api::RemoveExtentRequest>) -> Answer<api::Empty> {
        let agent = Arc::clone(&self.0);
        whole(async move { agent.remove_extent(request.into_inner()).await.map(|()| api::Empty {}) }).await
    }

    async fn create_container(
        &self,
        request: Request<api::CreateContainerRequest>,
    ) -> Answer<api::CreateResponse> {
        let (agent, deadline) = (Arc::clone(&self.0), deadline::of(&request, deadline::TO_MAKE));
        whole(async move {
            let pid = agent.create_container(request.into_inner(), deadline).await?;
            Ok(api::CreateResponse { pid })
        })
        .await
    }

    async fn exec(&self, request: Request<api::ExecRequest>) -> Answer<api::Empty> {
        let (agent, deadline) = (Arc::clone(&self.0), deadline::of(&request, deadline::FOR_THE_REST));
        whole(async move {
            let request = request.into_inner();
            let container = agent.container(&request.container_id)?;
            container::exec(&agent.services, &container, request, deadline).await?;
            Ok(api::Empty {})
        })
        .await
    }

    async fn start(&self, request: Request<api::ProcessRequest>) -> Answer<api::StartResponse> {
        let (agent, deadline) = (Arc::clone(&self.0), deadline::of(&request, deadline::TO_MAKE));
        whole(async move {
            let request = request.into_inner();
            let container = agent.container(&request.container_id)?;
            if request.exec_id.is_empty() {
                let container = Arc::clone(&container);
                blocking(move || container.start()).await?;
            } else {
                container::start_exec(&agent.services, &container, &request.exec_id, deadline).await?;
            }
            let pid = container.process(&request.exec_id)?.pid();
            Ok(api::StartResponse { pid: pid.map_or(0, |pid| pid.as_raw_nonzero().get().cast_unsigned()) })
        })
        .await
    }

    async fn wait(&self, request: Request<api::ProcessRequest>) -> Answer<api::WaitResponse> {
        let request = request.get_ref();
        let process = self.0.container(&request.container_id)?.process(&request.exec_id)?;
        let ended = process.wait().await?;
        Ok(Response::new(api::WaitResponse {
            exit_status: ended.exit.status,
            exited_at_unix_nanos: ended.exit.at_unix_nanos,
            oom_killed: ended.oom_killed,
        }))
    }

    async fn kill(&self, request: Request<api::KillRequest>) -> Answer<api::Empty> {
        empty(kill(&self.0, request.get_ref()).await)
    }

    async fn delete(&self, request: Request<api::ProcessRequest>) -> Answer<api::DeleteResponse> {
        let (agent, deadline) = (Arc::clone(&self.0), deadline::of(&request, deadline::FOR_THE_REST));
        whole(async move {
            let request = request.into_inner();
            let exit = if request.exec_id.is_empty() {
                agent.delete_container(&request.container_id, deadline).await?
            } else {
                let container = agent.container(&request.container_id)?;
                container::delete_exec(&container, &request.exec_id)?
            };
            Ok(api::DeleteResponse { exit_status: exit.status, exited_at_unix_nanos: exit.at_unix_nanos })
        })
        .await
    }

    async fn resize_tty(&self, request: Request<api::ResizeTtyRequest>) -> Answer<api::Empty> {
        let request = request.get_ref();
        let process = self.0.container(&request.container_id)?.process(&request.exec_id)?;
        empty(process.resize(request.columns, request.rows))
    }

    async fn stats(&self, request: Request<api::ContainerRequest>) -> Answer<api::StatsResponse> {
        let container = self.0.container(&request.get_ref().container_id)?;
        Ok(Response::new(blocking(move || container.cgroup.stats()).await?))
    }

    async fn update(&self, request: Request<api::UpdateRequest>) -> Answer<api::Empty> {
        let request = request.into_inner();
        let container = self.0.container(&request.container_id)?;
        let resources: LinuxResources = serde_json::from_slice(&request.resources).map_err(|error| {
            AgentError::Invalid(format!("read the new limits of container {}: {error}", container.id))
        })?;
        let update = move || {
            let has_control = |file: &str| Path::new(paths::POD_CGROUP).join(file).exists();
            container.cgroup.update(&container::limit(&resources, &has_control)?)
        };
        whole(async move { blocking(update).await.map(|()| api::Empty {}) }).await
    }

    async fn pause(&self, request: Request<api::ContainerRequest>) -> Answer<api::Empty> {
        set_paused(&self.0, request, true).await
    }

    async fn resume(&self, request: Request<api::ContainerRequest>) -> Answer<api::Empty> {
        set_paused(&self.0, request, false).await
    }

    async fn list_pids(&self, request: Request<api::ContainerRequest>) -> Answer<api::ListPidsResponse> {
        let container = self.0.container(&request.get_ref().container_id)?;
        let pids = blocking(move || container.cgroup.pids()).await?;
        Ok(Response::new(api::ListPidsResponse { pids }))
    }

    async fn push_volume(&self, request: Request<api::PushVolumeRequest>) -> Answer<api::Empty> {
        let request = request.into_inner();
        whole(async move {
            // One at a time: two pushes of one volume must not mix.
            static ONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
            let _one = ONE.lock().await;
            blocking(move || volumes::push(Path::new(paths::VOLUMES), &request)).await?;
            Ok(api::Empty {})
        })
        .await
    }

    async fn read_volume(&self, request: Request<api::ReadVolumeRequest>) -> Answer<api::ReadVolumeResponse> {
        let request = request.into_inner();
        let data = blocking(move || volumes::read(Path::new(paths::VOLUMES), &request)).await?;
        Ok(Response::new(api::ReadVolumeResponse { data: data.into() }))
    }

    async fn dial(&self, request: Request<api::DialRequest>) -> Answer<api::Empty> {
        let deadline = deadline::of(&request, deadline::FOR_THE_REST);
        let services = &self.0.services;
        let namespaces = services.namespaces().cloned();
        empty(dial::dial(&services.streams, namespaces, request.get_ref(), deadline).await)
    }

    async fn set_clock(&self, request: Request<api::SetClockRequest>) -> Answer<api::Empty> {
        empty(clock::correct(request.get_ref().unix_nanos))
    }

    type EventsStream = Pin<Box<dyn Stream<Item = std::result::Result<api::Event, Status>> + Send>>;

    async fn events(&self, _: Request<api::Empty>) -> Answer<Self::EventsStream> {
        let events = futures_util::stream::unfold(self.0.services.events(), |mut events| async move {
            loop {
                match events.recv().await {
                    Ok(event) => return Some((Ok(event), events)),
                    Err(tokio::sync::broadcast::error::RecvError::Lagged(lost)) => {
                        crate::log!("a listener missed {lost} events");
                    }
                    Err(tokio::sync::broadcast::error::RecvError::Closed) => return None,
                }
            }
        });
        Ok(Response::new(events.boxed()))
    }

    async fn shutdown(&self, _: Request<api::Empty>) -> Answer<api::Empty> {
        self.0.shut_down().await;
        Ok(Response::new(api::Empty {}))
    }
}

async fn kill(agent: &Agent, request: &api::KillRequest) -> Result<()> {
    let container = agent.container(&request.container_id)?;
    let signal = process::signal(request.signal)?;
    // "All" is a container's: containerd says it even when it takes down an exec that failed to start.
    if !request.all || !request.exec_id.is_empty() {
        return container.process(&request.exec_id)?.signal(signal);
    }
    blocking(move || kill_all(&container, signal)).await
}

fn kill_all(container: &Container, signal: rustix::process::Signal) -> Result<()> {
    if container.init.phase() == Phase::Creating {
        return Err(AgentError::WrongState(format!("container {} is being created", container.id)));
    }
    container.cgroup.signal(signal)
}

async fn set_paused(
    agent: &Agent,
    request: Request<api::ContainerRequest>,
    paused: bool,
) -> Answer<api::Empty> {
    let deadline = deadline::of(&request, deadline::FOR_THE_REST);
    let container = agent.container(&request.get_ref().container_id)?;
    let work = move || container.set_paused(paused, deadline).map(|()| api::Empty {});
    whole(blocking(work)).await
}
