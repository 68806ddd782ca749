//! A connection that breaks off.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_vsock::VsockStream;
use tonic::transport::server::Connected;

/// What is let through: enough for the pod to be set up and a container to be started.
const BYTES: usize = 1500;

/// A connection of which, if that is wanted, only the first bytes of what is written arrive.
pub struct Cut {
    stream: VsockStream,
    left: Option<usize>,
}

impl Cut {
    pub fn new(stream: VsockStream, cuts: bool) -> Self {
        Self { stream, left: cuts.then_some(BYTES) }
    }
}

impl Connected for Cut {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Cut {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Cut {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let most = self.left.unwrap_or(bytes.len()).min(bytes.len());
        if most == 0 && !bytes.is_empty() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let written = Pin::new(&mut self.stream).poll_write(cx, &bytes[..most]);
        if let (Poll::Ready(Ok(count)), Some(left)) = (&written, &mut self.left) {
            *left -= count;
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
