//! The gRPC service: each call in a few lines, the work elsewhere.

use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

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
use crate::{clock, dial, paths, volumes};

/// Serves the agent to the host.
#[derive(Debug, Clone)]
pub struct AgentService(pub Arc<Agent>);

type Answer<T> = std::result::Result<Response<T>, Status>;

/// How long a caller waits for the answer, as it says in the call's `grpc-timeout`; a minute if it does not say.
fn patience<T>(request: &Request<T>) -> Duration {
    const UNSAID: Duration = Duration::from_secs(60);
    let said = request.metadata().get("grpc-timeout").and_then(|value| parse_timeout(value.to_str().ok()?));
    said.unwrap_or(UNSAID)
}

/// At most eight digits and a unit (gRPC over HTTP/2, "Timeout").
fn parse_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number: u64 = digits.parse().ok().filter(|_| digits.len() <= 8)?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

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
        let agent = Arc::clone(&self.0);
        whole(async move { agent.set_up(request.get_ref()).await }).await
    }

    async fn add_extent(&self, request: Request<api::AddExtentRequest>) -> Answer<api::Empty> {
        let agent = Arc::clone(&self.0);
        whole(async move { agent.add_extent(request.into_inner()).await.map(|()| api::Empty {}) }).await
    }

    async fn remove_extent(&self, request: Request<api::RemoveExtentRequest>) -> Answer<api::Empty> {
        let agent = Arc::clone(&self.0);
        whole(async move { agent.remove_extent(request.into_inner()).await.map(|()| api::Empty {}) }).await
    }

    async fn create_container(
        &self,
        request: Request<api::CreateContainerRequest>,
    ) -> Answer<api::CreateResponse> {
        let (agent, patience) = (Arc::clone(&self.0), patience(&request));
        whole(async move {
            let pid = agent.create_container(request.into_inner(), patience).await?;
            Ok(api::CreateResponse { pid })
        })
        .await
    }

    async fn exec(&self, request: Request<api::ExecRequest>) -> Answer<api::Empty> {
        let agent = Arc::clone(&self.0);
        whole(async move {
            let request = request.into_inner();
            let container = agent.container(&request.container_id)?;
            container::exec(&agent.services, &container, request).await?;
            Ok(api::Empty {})
        })
        .await
    }

    async fn start(&self, request: Request<api::ProcessRequest>) -> Answer<api::StartResponse> {
        let (agent, patience) = (Arc::clone(&self.0), patience(&request));
        whole(async move {
            let request = request.into_inner();
            let container = agent.container(&request.container_id)?;
            if request.exec_id.is_empty() {
                let container = Arc::clone(&container);
                blocking(move || container.start()).await?;
            } else {
                container::start_exec(&agent.services, &container, &request.exec_id, patience).await?;
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
        let agent = Arc::clone(&self.0);
        whole(async move {
            let request = request.into_inner();
            let exit = if request.exec_id.is_empty() {
                agent.delete_container(&request.container_id).await?
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
        empty(dial::dial(&self.0.services.streams, request.get_ref()).await)
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
    let container = agent.container(&request.get_ref().container_id)?;
    whole(async move { blocking(move || container.set_paused(paused)).await.map(|()| api::Empty {}) }).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_callers_timeout_is_read_in_every_unit() {
        for (text, millis) in [("1H", 3_600_000), ("2M", 120_000), ("3S", 3000), ("4m", 4), ("5000u", 5)] {
            assert_eq!(parse_timeout(text), Some(Duration::from_millis(millis)));
        }
        for text in ["", "S", "5", "5x", "-1S", "123456789S", "\u{e9}"] {
            assert_eq!(parse_timeout(text), None, "{text}");
        }
    }
}
