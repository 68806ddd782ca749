//! The lies.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ravelin_proto::agent::agent_server::Agent as Service;
use ravelin_proto::agent::event::Kind;
use ravelin_proto::{MAX_REPLY_BYTES, PROTOCOL_VERSION, agent as api};
use tokio::io::AsyncReadExt;
use tokio_stream::{Stream, StreamExt};
use tokio_vsock::{VsockListener, VsockStream};
use tonic::{Request, Response, Status};

use super::Mode;

type Answer<T> = Result<Response<T>, Status>;

const LATE: Duration = Duration::from_secs(10);
/// More than a message may hold.
const HUGE: usize = 5 << 20;
/// As much as it may.
const LARGE: usize = MAX_REPLY_BYTES - 4096;

pub struct Liar {
    mode: Mode,
    /// A container was started: the lies begin.
    started: AtomicBool,
    /// Standard streams by their ids.
    streams: Mutex<HashMap<u64, VsockStream>>,
}

impl Liar {
    pub fn new(mode: Mode) -> Self {
        Self { mode, started: AtomicBool::new(false), streams: Mutex::default() }
    }

    /// Takes standard streams in, and never closes one.
    pub async fn keep(self: Arc<Self>, listener: VsockListener) {
        let mut incoming = listener.incoming();
        while let Some(stream) = incoming.next().await {
            let Ok(mut stream) = stream else { continue };
            let id = stream.read_u64_le().await.unwrap_or_default();
            self.streams.lock().unwrap().insert(id, stream);
        }
    }

    /// What happens to every answer.
    async fn lie<T>(&self, honest: T) -> Answer<T> {
        if !self.started.load(Ordering::SeqCst) {
            return Ok(Response::new(honest));
        }
        match self.mode {
            Mode::Silent => std::future::pending().await,
            Mode::Late => {
                tokio::time::sleep(LATE).await;
                Ok(Response::new(honest))
            }
            Mode::Errors => Err(Status::internal("lies ".repeat(1 << 20))),
            _ => Ok(Response::new(honest)),
        }
    }

    fn is(&self, mode: Mode) -> bool {
        self.mode == mode && self.started.load(Ordering::SeqCst)
    }
}

#[tonic::async_trait]
impl Service for Liar {
    async fn setup_sandbox(&self, _: Request<api::SetupSandboxRequest>) -> Answer<api::SetupSandboxResponse> {
        let kernel_release = if self.mode == Mode::Huge { "k".repeat(LARGE) } else { "lies".to_owned() };
        self.lie(api::SetupSandboxResponse { protocol_version: PROTOCOL_VERSION, kernel_release }).await
    }

    async fn add_extent(&self, _: Request<api::AddExtentRequest>) -> Answer<api::Empty> {
        self.lie(api::Empty {}).await
    }

    async fn remove_extent(&self, _: Request<api::RemoveExtentRequest>) -> Answer<api::Empty> {
        self.lie(api::Empty {}).await
    }

    async fn create_container(&self, _: Request<api::CreateContainerRequest>) -> Answer<api::CreateResponse> {
        self.lie(api::CreateResponse { pid: u32::MAX }).await
    }

    async fn exec(&self, _: Request<api::ExecRequest>) -> Answer<api::Empty> {
        self.lie(api::Empty {}).await
    }

    async fn start(&self, _: Request<api::ProcessRequest>) -> Answer<api::StartResponse> {
        let answer = self.lie(api::StartResponse { pid: 1 }).await;
        self.started.store(true, Ordering::SeqCst);
        answer
    }

    async fn wait(&self, _: Request<api::ProcessRequest>) -> Answer<api::WaitResponse> {
        let exit =
            api::WaitResponse { exit_status: u32::MAX, exited_at_unix_nanos: u64::MAX, oom_killed: true };
        match self.mode {
            Mode::Ended | Mode::Open => {
                while !self.started.load(Ordering::SeqCst) {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                Ok(Response::new(exit))
            }
            _ => std::future::pending().await,
        }
    }

    async fn kill(&self, _: Request<api::KillRequest>) -> Answer<api::Empty> {
        self.lie(api::Empty {}).await
    }

    async fn delete(&self, _: Request<api::ProcessRequest>) -> Answer<api::DeleteResponse> {
        self.lie(api::DeleteResponse { exit_status: u32::MAX, exited_at_unix_nanos: u64::MAX }).await
    }

    async fn resize_tty(&self, _: Request<api::ResizeTtyRequest>) -> Answer<api::Empty> {
        self.lie(api::Empty {}).await
    }

    async fn stats(&self, _: Request<api::ContainerRequest>) -> Answer<api::StatsResponse> {
        let mut stats = api::StatsResponse::default();
        if self.is(Mode::Huge) || self.is(Mode::Half) {
            let stat = (0..HUGE / 32).map(|number| (format!("{number:016}"), u64::MAX)).collect();
            stats.memory = Some(api::MemoryStats { usage: u64::MAX, stat, ..api::MemoryStats::default() });
            stats.io =
                vec![api::IoStats { major: u64::MAX, minor: u64::MAX, ..api::IoStats::default() }; 1000];
        }
        self.lie(stats).await
    }

    async fn update(&self, _: Request<api::UpdateRequest>) -> Answer<api::Empty> {
        self.lie(api::Empty {}).await
    }

    async fn pause(&self, _: Request<api::ContainerRequest>) -> Answer<api::Empty> {
        self.lie(api::Empty {}).await
    }

    async fn resume(&self, _: Request<api::ContainerRequest>) -> Answer<api::Empty> {
        self.lie(api::Empty {}).await
    }

    async fn list_pids(&self, _: Request<api::ContainerRequest>) -> Answer<api::ListPidsResponse> {
        let pids = if self.is(Mode::Huge) { vec![u32::MAX; LARGE / 5] } else { vec![0] };
        self.lie(api::ListPidsResponse { pids }).await
    }

    async fn push_volume(&self, _: Request<api::PushVolumeRequest>) -> Answer<api::Empty> {
        self.lie(api::Empty {}).await
    }

    async fn read_volume(&self, _: Request<api::ReadVolumeRequest>) -> Answer<api::ReadVolumeResponse> {
        let data = if self.is(Mode::Huge) { vec![b'x'; LARGE] } else { Vec::new() };
        self.lie(api::ReadVolumeResponse { data: data.into() }).await
    }

    async fn dial(&self, _: Request<api::DialRequest>) -> Answer<api::Empty> {
        self.lie(api::Empty {}).await
    }

    async fn set_clock(&self, _: Request<api::SetClockRequest>) -> Answer<api::Empty> {
        self.lie(api::Empty {}).await
    }

    type EventsStream = Pin<Box<dyn Stream<Item = Result<api::Event, Status>> + Send>>;

    async fn events(&self, _: Request<api::Empty>) -> Answer<Self::EventsStream> {
        let (mode, mut count) = (self.mode, 0_u64);
        let events = tokio_stream::iter(std::iter::from_fn(move || {
            count += 1;
            let container_id = if mode == Mode::Huge { "x".repeat(LARGE) } else { format!("nobody-{count}") };
            let kind = if count % 2 == 0 {
                Kind::Oom(api::OomEvent { container_id })
            } else {
                Kind::Exit(api::ExitEvent {
                    container_id,
                    exec_id: String::new(),
                    exit_status: 1,
                    exited_at_unix_nanos: 0,
                })
            };
            Some(Ok(api::Event { kind: Some(kind) }))
        }));
        match mode {
            // As fast as they are taken.
            Mode::Ended | Mode::Huge => Ok(Response::new(Box::pin(events))),
            _ => Ok(Response::new(Box::pin(tokio_stream::pending()))),
        }
    }

    async fn shutdown(&self, _: Request<api::Empty>) -> Answer<api::Empty> {
        // Nothing is shut down, whatever is said.
        self.lie(api::Empty {}).await
    }
}
