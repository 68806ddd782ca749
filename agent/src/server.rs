//! From a prepared guest to an agent that serves.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use ravelin_proto::agent::agent_server::AgentServer;
use ravelin_proto::{CONTROL_PORT, MAX_MESSAGE_BYTES, STREAM_PORT};
use rustix::process::Pid;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_stream::{Stream, StreamExt};
use tokio_vsock::{VMADDR_CID_ANY, VsockAddr, VsockListener, VsockStream};
use tonic::transport::Server;
use tonic::transport::server::Connected;

use crate::agent::Agent;
use crate::init::mark::{self, Mark};
use crate::reaper::Reaper;
use crate::service::AgentService;
use crate::services::Services;
use crate::spawner::Spawner;
use crate::stdio::BoxStream;
use crate::{sync, trim};

/// The host's address on the vsock: the only peer the agent talks to.
const HOST_CID: u32 = 2;

/// Pause after a connection that could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Makes the spawner, then the runtime, and serves the host over vsock; returns only on failure.
///
/// # Errors
///
/// When the guest's kernel refuses what the agent cannot do without.
pub fn run() -> io::Result<()> {
    serve_with(|agent| async move {
        let control = VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, CONTROL_PORT))?;
        let streams = VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, STREAM_PORT))?;
        mark::write(Mark::Ready);
        let streams = from_host(streams).map(|stream| stream.map(|stream| Box::new(stream) as BoxStream));
        serve(agent, from_host(control), streams).await
    })
}

/// Like [`run`], with the connections coming from wherever `serve` takes them.
///
/// # Errors
///
/// When the guest's kernel refuses what the agent cannot do without.
pub fn serve_with<F: Future<Output = io::Result<()>>>(serve: impl FnOnce(Arc<Agent>) -> F) -> io::Result<()> {
    // A broken pipe is an error like any other. Programs get the default back before they are executed.
    // SAFETY: ignoring a signal installs no handler.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    // Before the first thread.
    let spawner = Spawner::start()?;
    let reaper = Reaper::default();
    let vital: Pid = spawner.pid();
    reaper.start(vital);
    let runtime = sync::runtime()?;
    runtime.block_on(async { serve(Agent::new(Services::new(spawner, reaper)?)).await })
}

/// Serves calls from `control` and takes standard streams from `streams`.
///
/// # Errors
///
/// When the server fails.
pub async fn serve<C, I, S>(agent: Arc<Agent>, control: C, streams: S) -> io::Result<()>
where
    C: Stream<Item = io::Result<I>>,
    I: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
    S: Stream<Item = io::Result<BoxStream>> + Send + 'static,
{
    let registry = Arc::clone(&agent.services.streams);
    tokio::spawn(async move {
        tokio::pin!(streams);
        while let Some(stream) = streams.next().await {
            if let Ok(stream) = stream {
                tokio::spawn(Arc::clone(&registry).accept(stream));
            }
        }
    });
    tokio::spawn(trim::keep_trimmed());
    let service = AgentServer::new(AgentService(agent))
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    Server::builder().add_service(service).serve_with_incoming(control).await.map_err(io::Error::other)
}

/// Connections from the host; others are closed at once.
fn from_host(listener: VsockListener) -> impl Stream<Item = io::Result<VsockStream>> + Send + 'static {
    futures_util::stream::unfold(listener, |listener| async move {
        loop {
            match listener.accept().await {
                Ok((stream, peer)) if peer.cid() == HOST_CID => return Some((Ok(stream), listener)),
                Ok(_) => {}
                // Too many descriptors, say: that may pass, and must not keep the processor busy until then.
                Err(error) => {
                    crate::log!("cannot accept a connection: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    })
}
