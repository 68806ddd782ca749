//! Connections from the host to the pod's loopback address, carried on into the guest.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ravelin_proto::agent::DialRequest;
use rustix::process::Resource;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Semaphore;

use super::Pod;
use crate::error::TaskError;
use crate::network::Loopback;

/// Most connections at a time; a further one is refused. The machine carries 1024 streams at most, and the standard
/// streams of containers and execs shall always find room among them.
const MOST: usize = 768;
/// Of the shim's descriptors connections take half at most, two each.
const DESCRIPTORS_FOR_ONE: u64 = 4;

/// Serves the pod's loopback address until its machine ends.
pub(super) async fn serve(pod: Arc<Pod>, loopback: Loopback) {
    let most = most(rustix::process::getrlimit(Resource::Nofile).current);
    serve_at_most(most, pod, loopback).await;
}

async fn serve_at_most(most: usize, pod: Arc<Pod>, loopback: Loopback) {
    let machine = pod.agent.machine().clone();
    let places = Arc::new(Semaphore::new(most));
    let served = loopback.serve(|stream, port| {
        let (pod, places) = (Arc::clone(&pod), Arc::clone(&places));
        async move {
            let Ok(_place) = places.try_acquire() else {
                refuse(&stream);
                tracing::info!(
                    sandbox = pod.sandbox_id,
                    "a connection to the pod's port {port} was refused: there are {most} already"
                );
                return;
            };
            if let Err(error) = carry(&pod, stream, port).await {
                tracing::info!(
                    sandbox = pod.sandbox_id,
                    "a connection to the pod's port {port} was not carried on: {error}"
                );
            }
        }
    });
    tokio::select! {
        _ = machine.wait() => {}
        served = served => {
            if let Err(error) = served {
                tracing::warn!(sandbox = pod.sandbox_id, "ports cannot be forwarded: {error}");
            }
        }
    }
}

/// How many connections there may be with so many descriptors; `None` is no limit.
fn most(descriptors: Option<u64>) -> usize {
    let places = descriptors.unwrap_or(u64::MAX) / DESCRIPTORS_FOR_ONE;
    usize::try_from(places).unwrap_or(usize::MAX).min(MOST)
}

/// Carries one connection, to its end.
async fn carry(pod: &Pod, mut stream: TcpStream, port: u16) -> Result<(), TaskError> {
    let mut guest = match connect(pod, port).await {
        Ok(guest) => guest,
        Err(error) => {
            refuse(&stream);
            return Err(error);
        }
    };
    // Either end may break off; that is its own affair.
    let _ = copy_bidirectional(&mut stream, &mut guest).await;
    Ok(())
}

/// The other end sees a reset, which is as near to a refusal as a connection gets that was taken.
fn refuse(stream: &TcpStream) {
    let _ = stream.set_zero_linger();
}

/// A stream that the agent has connected to a port of the guest's loopback address.
async fn connect(pod: &Pod, port: u16) -> Result<UnixStream, TaskError> {
    let id = pod.next_stream.fetch_add(1, Ordering::Relaxed);
    let guest = pod.agent.machine().open_stream(id).await.map_err(TaskError::failed)?;
    let request = DialRequest { port: u32::from(port), stream: id };
    let mut client = pod.agent.client();
    let dialed = pod.agent.call("connect to a port", client.dial(pod.agent.request(request))).await;
    dialed.map_err(TaskError::failed)?;
    Ok(guest)
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::time::Duration;

    use tokio::io::AsyncReadExt;

    use super::*;
    use crate::sandbox::testing::silent_pod;

    #[tokio::test]
    async fn one_connection_too_many_is_reset_and_waits_for_nothing() {
        let pod = Arc::new(silent_pod().await);
        let (loopback, address) = Loopback::plain();
        let serving = tokio::spawn(serve_at_most(2, pod, loopback));
        let mut connections = Vec::new();
        for _ in 0..3 {
            connections.push(TcpStream::connect(address).await.unwrap());
        }
        // The first ones wait for the guest, which is silent.
        let read = async { connections.pop().unwrap().read(&mut [0]).await };
        let read = tokio::time::timeout(Duration::from_secs(20), read).await.expect("it hangs");
        assert_eq!(read.unwrap_err().kind(), ErrorKind::ConnectionReset);
        for connection in &connections {
            let waits = connection.try_read(&mut [0]).unwrap_err();
            assert_eq!(waits.kind(), ErrorKind::WouldBlock);
        }
        serving.abort();
    }

    #[test]
    fn connections_leave_descriptors_and_streams_for_others() {
        assert_eq!(most(None), 768);
        assert_eq!(most(Some(1 << 20)), 768);
        assert_eq!(most(Some(1024)), 256);
    }
}
