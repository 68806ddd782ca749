//! Connections that the host makes to the pod's loopback address: `kubectl port-forward` is containerd connecting to
//! `localhost` inside the pod's network namespace, where a container would listen. The pod listens in its guest.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use tokio::net::TcpStream;

use super::sk_lookup;

/// Pause before the next connection is taken when one could not be.
const PAUSE: Duration = Duration::from_millis(100);

/// The one listener for all ports of a namespace's loopback address, over IPv4.
///
/// Frames of the network never come to it: they go to the machine before the namespace's stack sees them. What it takes
/// was made by somebody inside the namespace, and that is the host.
#[derive(Debug)]
pub struct Loopback {
    listener: TcpListener,
    /// The program that brings the connections; it goes when this is closed.
    _link: OwnedFd,
}

impl Loopback {
    /// Listens in the network namespace of the calling thread.
    pub(super) fn listen() -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let netns = File::open("/proc/thread-self/ns/net")?;
        let link = sk_lookup::attach(netns.as_fd(), listener.as_fd())?;
        Ok(Self { listener, _link: link })
    }

    /// A listener at an address of its own, which takes no privileges to make.
    #[cfg(test)]
    pub(crate) fn plain() -> (Self, SocketAddr) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let nothing = File::open("/dev/null").unwrap();
        (Self { listener, _link: nothing.into() }, address)
    }

    /// Calls `take` with every connection and the port it was made to, for ever.
    ///
    /// # Errors
    /// When the runtime does not take the socket.
    pub async fn serve<F>(self, take: impl Fn(TcpStream, u16) -> F) -> io::Result<()>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = tokio::net::TcpListener::from_std(self.listener)?;
        loop {
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // It went away before it was taken, or there are no descriptors left for now.
                    tracing::debug!("cannot take a connection to a pod's loopback address: {error}");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            if let Ok(port) = stream.local_addr().as_ref().map(SocketAddr::port) {
                tokio::spawn(take(stream, port));
            }
        }
    }
}
