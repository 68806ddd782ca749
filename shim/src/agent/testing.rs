//! An agent for tests: it answers what is asked of processes, when the test lets it, and refuses everything else.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use futures_util::stream::{self, Stream};
use ravelin_proto::CONTROL_PORT;
use ravelin_proto::agent::agent_server::{Agent, AgentServer};
use ravelin_proto::agent::{
    AddExtentRequest, ContainerRequest, CreateContainerRequest, CreateResponse, DeleteResponse, DialRequest,
    Empty, Event, ExecRequest, IoStats, KillRequest, ListPidsResponse, ProcessRequest, PushVolumeRequest,
    ReadVolumeRequest, ReadVolumeResponse, RemoveExtentRequest, ResizeTtyRequest, SetClockRequest,
    SetupSandboxRequest, SetupSandboxResponse, StartResponse, StatsResponse, UpdateRequest, WaitResponse,
};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use crate::machine::testing;
use crate::sync::lock;

/// What its calls have done and may do; clones are the same agent.
#[derive(Debug, Clone, Default)]
pub struct Fake(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    may_start: watch::Sender<bool>,
    updates: Mutex<Vec<UpdateRequest>>,
    refuses_update: AtomicBool,
    disks: AtomicUsize,
    timed: Mutex<Vec<&'static str>>,
    /// Streams into the guest: they stay open as long as the agent is there.
    streams: Mutex<Vec<UnixStream>>,
}

impl Fake {
    /// Serves the guest of the machine whose control socket this is.
    pub fn serve(&self, control: OwnedFd) {
        let mut connections = testing::connections(control);
        let (calls, mut served) = mpsc::unbounded_channel();
        let inner = Arc::clone(&self.0);
        tokio::spawn(async move {
            while let Some((port, stream)) = connections.recv().await {
                if port == CONTROL_PORT {
                    let _ = calls.send(stream);
                } else {
                    lock(&inner.streams).push(stream);
                }
            }
        });
        let incoming =
            stream::poll_fn(move |context| served.poll_recv(context).map(|next| next.map(io::Result::Ok)));
        let service = AgentServer::new(self.clone());
        tokio::spawn(Server::builder().serve_with_incoming(service, incoming));
    }

    /// Lets `Start` answer.
    pub fn let_start(&self) {
        self.0.may_start.send_replace(true);
    }

    /// The calls that said how long their caller waits.
    pub fn timed(&self) -> Vec<&'static str> {
        lock(&self.0.timed).clone()
    }

    /// How many streams into the guest were opened.
    pub fn streams(&self) -> usize {
        lock(&self.0.streams).len()
    }

    /// Whether the next `Update` is refused.
    pub fn refuse_next_update(&self, refuse: bool) {
        self.0.refuses_update.store(refuse, Ordering::Relaxed);
    }

    /// How many disks `Stats` counts of.
    pub fn count_disks(&self, count: usize) {
        self.0.disks.store(count, Ordering::Relaxed);
    }

    fn note<T>(&self, call: &'static str, request: &Request<T>) {
        if request.metadata().contains_key("grpc-timeout") {
            lock(&self.0.timed).push(call);
        }
    }

    /// The limits that containers were given, the last ones last.
    pub fn updates(&self) -> Vec<UpdateRequest> {
        lock(&self.0.updates).clone()
    }
}

macro_rules! fake {
    ($($refused:ident: $request:ty => $answer:ty,)* { $($answered:tt)* }) => {
        #[async_trait::async_trait]
        impl Agent for Fake {
            $($answered)*
            $(async fn $refused(&self, _: Request<$request>) -> Result<Response<$answer>, Status> {
                Err(Status::unimplemented(stringify!($refused)))
            })*
        }
    };
}

fake! {
    setup_sandbox: SetupSandboxRequest => SetupSandboxResponse,
    add_extent: AddExtentRequest => Empty,
    remove_extent: RemoveExtentRequest => Empty,
    create_container: CreateContainerRequest => CreateResponse,
    kill: KillRequest => Empty,
    delete: ProcessRequest => DeleteResponse,
    resize_tty: ResizeTtyRequest => Empty,
    pause: ContainerRequest => Empty,
    resume: ContainerRequest => Empty,
    list_pids: ContainerRequest => ListPidsResponse,
    push_volume: PushVolumeRequest => Empty,
    read_volume: ReadVolumeRequest => ReadVolumeResponse,
    dial: DialRequest => Empty,
    set_clock: SetClockRequest => Empty,
    events: Empty => Events,
    shutdown: Empty => Empty,
    {
        type EventsStream = Events;

        async fn exec(&self, request: Request<ExecRequest>) -> Result<Response<Empty>, Status> {
            self.note("exec", &request);
            Ok(Response::new(Empty {}))
        }

        async fn start(&self, request: Request<ProcessRequest>) -> Result<Response<StartResponse>, Status> {
            self.note("start", &request);
            let _ = self.0.may_start.subscribe().wait_for(|may| *may).await;
            Ok(Response::new(StartResponse::default()))
        }

        /// Every process has ended already.
        async fn wait(&self, _: Request<ProcessRequest>) -> Result<Response<WaitResponse>, Status> {
            Ok(Response::new(WaitResponse::default()))
        }

        async fn stats(&self, _: Request<ContainerRequest>) -> Result<Response<StatsResponse>, Status> {
            let io = vec![IoStats::default(); self.0.disks.load(Ordering::Relaxed)];
            Ok(Response::new(StatsResponse { io, ..StatsResponse::default() }))
        }

        async fn update(&self, request: Request<UpdateRequest>) -> Result<Response<Empty>, Status> {
            lock(&self.0.updates).push(request.into_inner());
            if self.0.refuses_update.swap(false, Ordering::Relaxed) {
                return Err(Status::internal("no"));
            }
            Ok(Response::new(Empty {}))
        }
    }
}

type Events = std::pin::Pin<Box<dyn Stream<Item = Result<Event, Status>> + Send>>;
