//! Connections of the host to servers in the pod, as `kubectl port-forward` makes them.

use std::net::{Ipv4Addr, Ipv6Addr};

use ravelin_proto::agent as api;
use tokio::io::copy_bidirectional;
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::error::{AgentError, Result};
use crate::stdio::Registry;

/// Connects a stream to a port of the loopback address, IPv4's before IPv6's; returns when they are connected. The stream is
/// waited for until `deadline`.
///
/// # Errors
///
/// [`AgentError::WrongState`] when nobody listens, [`AgentError::NotFound`] when the stream does not come.
pub async fn dial(streams: &Registry, request: &api::DialRequest, deadline: Instant) -> Result<()> {
    let port = u16::try_from(request.port)
        .ok()
        .filter(|port| *port != 0)
        .ok_or_else(|| AgentError::Invalid(format!("{} is no TCP port", request.port)))?;
    let mut host = streams
        .take(request.stream, deadline)
        .await?
        .ok_or_else(|| AgentError::Invalid(format!("no stream to connect to port {port}")))?;
    let server = match TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await {
        Err(refused) => TcpStream::connect((Ipv6Addr::LOCALHOST, port)).await.map_err(|_| refused),
        connected => connected,
    };
    let mut server =
        server.map_err(|error| AgentError::WrongState(format!("connect to port {port}: {error}")))?;
    tokio::spawn(async move {
        // Either end may break off; that is its own affair.
        let _ = copy_bidirectional(&mut host, &mut server).await;
    });
    Ok(())
}
