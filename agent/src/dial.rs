//! Connections of the host to servers in the pod, as `kubectl port-forward` makes them.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};

use ravelin_proto::agent as api;
use tokio::io::copy_bidirectional;
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::error::{AgentError, Result};
use crate::stdio::Registry;

/// Connects a stream to a port of the loopback address, IPv4's before IPv6's; returns when they are connected. The stream and
/// the server are waited for until `deadline`.
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
    let refused = |why: String| AgentError::WrongState(format!("connect to port {port}: {why}"));
    // A packet filter of the pod's may leave it without an answer.
    let server = tokio::time::timeout_at(deadline, connect(port))
        .await
        .map_err(|_| refused("no answer".to_owned()))?;
    let mut server = server.map_err(|error| refused(error.to_string()))?;
    tokio::spawn(async move {
        // Either end may break off; that is its own affair.
        let _ = copy_bidirectional(&mut host, &mut server).await;
    });
    Ok(())
}

async fn connect(port: u16) -> io::Result<TcpStream> {
    match TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await {
        Err(refused) => TcpStream::connect((Ipv6Addr::LOCALHOST, port)).await.map_err(|_| refused),
        connected => connected,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use tokio::io::AsyncWriteExt;

    use super::*;

    #[tokio::test]
    async fn a_server_that_does_not_answer_is_waited_for_until_the_callers_deadline() {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let server = socket.listen(1).unwrap();
        let port = server.local_addr().unwrap().port();
        // Nobody accepts; when its queue is full the kernel leaves further ones without an answer.
        let mut queued = Vec::new();
        while let Ok(taken) = tokio::time::timeout(Duration::from_millis(300), connect(port)).await {
            queued.push(taken.unwrap());
        }
        let streams = Arc::new(Registry::default());
        let (mut host, guest) = tokio::io::duplex(64);
        tokio::spawn(Arc::clone(&streams).accept(Box::new(guest)));
        host.write_all(&7_u64.to_le_bytes()).await.unwrap();
        let request = api::DialRequest { port: port.into(), stream: 7 };
        let deadline = Instant::now() + Duration::from_millis(300);
        let dialled = tokio::time::timeout(Duration::from_secs(20), dial(&streams, &request, deadline)).await;
        assert_eq!(
            dialled.expect("it gives up").unwrap_err().to_string(),
            format!("connect to port {port}: no answer")
        );
    }
}
