//! Connections of the host to servers in the pod, as `kubectl port-forward` makes them.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ravelin_proto::agent as api;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::Instant;

use crate::error::{AgentError, Attempt, Result};
use crate::namespaces::{Namespaces, within};
use crate::stdio::Registry;
use crate::sync::blocking;

/// Connects a stream to a port of the loopback address, IPv4's before IPv6's; returns when they are connected. The stream and
/// the server are waited for until `deadline`.
///
/// # Errors
///
/// [`AgentError::WrongState`] when nobody listens, [`AgentError::NotFound`] when the stream does not come.
pub async fn dial(
    streams: &Registry,
    namespaces: Option<Arc<Namespaces>>,
    request: &api::DialRequest,
    deadline: Instant,
) -> Result<()> {
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
    let server = tokio::time::timeout_at(deadline, connect(namespaces, port))
        .await
        .map_err(|_| refused("no answer".to_owned()))?;
    let mut server = server.map_err(|error| refused(error.to_string()))?;
    tokio::spawn(async move {
        // Either end may break off; that is its own affair.
        let _ = copy_bidirectional(&mut host, &mut server).await;
    });
    Ok(())
}

async fn connect(namespaces: Option<Arc<Namespaces>>, port: u16) -> Result<TcpStream> {
    let sockets = blocking(move || {
        // A socket stays in the network namespace that it was made in.
        within(namespaces.as_deref(), || Ok((TcpSocket::new_v4(), TcpSocket::new_v6())))
    });
    let attempt = || "make a socket".to_owned();
    let (v4, v6) = sockets.await?;
    match v4.attempt(attempt)?.connect((Ipv4Addr::LOCALHOST, port).into()).await {
        Err(refused) => {
            let v6 = v6.attempt(attempt)?.connect((Ipv6Addr::LOCALHOST, port).into()).await;
            v6.map_err(|_| AgentError::Failed(refused.to_string()))
        }
        Ok(connected) => Ok(connected),
    }
}

#[cfg(test)]
mod tests {
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
        while let Ok(taken) = tokio::time::timeout(Duration::from_millis(300), connect(None, port)).await {
            queued.push(taken.unwrap());
        }
        let streams = Arc::new(Registry::default());
        let (mut host, guest) = tokio::io::duplex(64);
        tokio::spawn(Arc::clone(&streams).accept(Box::new(guest)));
        host.write_all(&7_u64.to_le_bytes()).await.unwrap();
        let request = api::DialRequest { port: port.into(), stream: 7 };
        let deadline = Instant::now() + Duration::from_millis(300);
        let dialled =
            tokio::time::timeout(Duration::from_secs(20), dial(&streams, None, &request, deadline)).await;
        assert_eq!(
            dialled.expect("it gives up").unwrap_err().to_string(),
            format!("connect to port {port}: no answer")
        );
    }
}
