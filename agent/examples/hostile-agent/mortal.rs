//! The real agent, which dies at one of its calls, or whose spawner does: `dies=WHO:WHEN:CALL:COUNT` on the kernel's command line,
//! for example `dies=spawner:before:CreateContainer:1`. `Boot` stands for the moment before it serves.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};

use ravelin_agent::agent::Agent;
use ravelin_agent::init::mark::{self, Mark};
use ravelin_agent::server::serve_with;
use ravelin_agent::service::AgentService;
use ravelin_agent::stdio::BoxStream;
use ravelin_proto::agent::agent_server::AgentServer;
use ravelin_proto::{CONTROL_PORT, MAX_MESSAGE_BYTES, STREAM_PORT};
use tokio_stream::StreamExt;
use tokio_vsock::{VMADDR_CID_ANY, VsockAddr, VsockListener};
use tonic::codegen::{BoxFuture, Service, http};
use tonic::transport::Server;
use tower::layer::layer_fn;

/// Who dies, and when.
#[derive(Debug, Clone)]
pub struct Death {
    victim: String,
    after: bool,
    call: String,
    count: u32,
}

impl Death {
    /// As the command line orders it.
    pub fn of_command_line(line: &str) -> Option<Self> {
        let order = line.split_whitespace().find_map(|word| word.strip_prefix("dies="))?;
        let [victim, when, call, count] =
            order.split(':').collect::<Vec<_>>().try_into().expect("four words");
        Some(Self {
            victim: victim.to_owned(),
            after: when == "after",
            call: call.to_owned(),
            count: count.parse().expect("a number"),
        })
    }

    fn come(&self, agent: &Agent) {
        println!("{} dies", self.victim);
        if self.victim == "agent" {
            // The kernel lets nobody kill its init; one that ends by itself is missed in the same way.
            // SAFETY: ends the process and nothing else.
            unsafe { libc::_exit(137) };
        }
        // SAFETY: a plain system call on numbers.
        unsafe { libc::kill(agent.services.spawner.pid().as_raw_nonzero().get(), libc::SIGKILL) };
    }
}

/// Serves as the agent does, until the death comes.
pub fn run(death: Death) -> io::Result<()> {
    serve_with(|agent| async move {
        if death.call == "Boot" {
            death.come(&agent);
        }
        let control = VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, CONTROL_PORT))?;
        let streams = VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, STREAM_PORT))?;
        mark::write(Mark::Ready);
        let registry = Arc::clone(&agent.services.streams);
        tokio::spawn(async move {
            let mut streams = streams.incoming();
            while let Some(stream) = streams.next().await {
                if let Ok(stream) = stream {
                    tokio::spawn(Arc::clone(&registry).accept(Box::new(stream) as BoxStream));
                }
            }
        });
        let (mortal, calls) = (Arc::clone(&agent), Arc::<AtomicU32>::default());
        let layer = layer_fn(move |inner| Mortal {
            inner,
            agent: Arc::clone(&mortal),
            death: death.clone(),
            calls: Arc::clone(&calls),
        });
        let service = AgentServer::new(AgentService(agent))
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let server = Server::builder().layer(layer).add_service(service);
        server.serve_with_incoming(control.incoming()).await.map_err(io::Error::other)
    })
}

/// Sees every call come and its answer go.
#[derive(Clone)]
struct Mortal<S> {
    inner: S,
    agent: Arc<Agent>,
    death: Death,
    calls: Arc<AtomicU32>,
}

impl<S, B> Service<http::Request<B>> for Mortal<S>
where
    S: Service<http::Request<B>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<S::Response, S::Error>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let named = request.uri().path().rsplit('/').next() == Some(self.death.call.as_str());
        let dies = named && self.calls.fetch_add(1, Ordering::SeqCst) + 1 == self.death.count;
        if dies && !self.death.after {
            self.death.come(&self.agent);
        }
        let (answer, agent, death) = (self.inner.call(request), Arc::clone(&self.agent), self.death.clone());
        Box::pin(async move {
            let answer = answer.await;
            if dies && death.after {
                death.come(&agent);
            }
            answer
        })
    }
}
