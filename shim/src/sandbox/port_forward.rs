//! Connections from the host to the pod's loopback address, carried on into the guest.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ravelin_proto::agent::DialRequest;
use tokio::io::copy_bidirectional;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use super::Pod;
use crate::error::chain;
use crate::network::Loopback;

/// Most connections at a time; further ones wait.
const MOST: usize = 256;

/// Serves the pod's loopback address until its machine ends.
pub(super) async fn serve(pod: Arc<Pod>, loopback: Loopback) {
    let machine = pod.agent.machine().clone();
    let places = Arc::new(Semaphore::new(MOST));
    let served = loopback.serve(|stream, port| {
        let (pod, places) = (Arc::clone(&pod), Arc::clone(&places));
        async move {
            let Ok(_place) = places.acquire().await else { return };
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
                tracing::warn!(sandbox = pod.sandbox_id, "ports are not forwarded any more: {error}");
            }
        }
    }
}

/// Carries one connection, to its end.
async fn carry(pod: &Pod, mut stream: TcpStream, port: u16) -> Result<(), String> {
    let carried = async {
        let id = pod.next_stream.fetch_add(1, Ordering::Relaxed);
        let guest = pod.agent.machine().open_stream(id).await.map_err(|error| chain(&error))?;
        let request = DialRequest { port: u32::from(port), stream: id };
        let mut client = pod.agent.client();
        pod.agent.call("connect to a port", client.dial(request)).await.map_err(|error| chain(&error))?;
        Ok(guest)
    };
    let carried: Result<_, String> = carried.await;
    match carried {
        Ok(mut guest) => {
            // Either end may break off; that is its own affair.
            let _ = copy_bidirectional(&mut stream, &mut guest).await;
            Ok(())
        }
        Err(error) => {
            // Nobody listens: the other end sees a reset, which is as near to a refusal as an accepted connection gets.
            let _ = stream.set_zero_linger();
            Err(error)
        }
    }
}
