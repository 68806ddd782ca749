use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::net::unix::pipe;

use super::Progress;

/// Bytes moved in one go: a fifo's capacity.
const CHUNK: usize = 64 << 10;

/// Copies what the process writes to containerd, to its end.
pub(super) async fn output(stream: UnixStream, mut fifo: pipe::Sender, progress: Arc<Progress>) {
    let copied: io::Result<()> = async {
        // A stream that has nothing to say holds no buffer.
        while stream.readable().await.is_ok() {
            let mut buffer = vec![0; CHUNK];
            loop {
                match stream.try_read(&mut buffer) {
                    Ok(0) => return Ok(()),
                    Ok(count) => {
                        progress.held_up.fetch_add(1, Ordering::Relaxed);
                        let written = fifo.write_all(buffer.get(..count).unwrap_or_default()).await;
                        progress.held_up.fetch_sub(1, Ordering::Relaxed);
                        written?;
                        progress.moved.fetch_add(count as u64, Ordering::Relaxed);
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }
    .await;
    if let Err(error) = copied {
        // The machine's end breaks its streams; the exit tells the rest.
        tracing::debug!("a process's output ended early: {error}");
    }
}

/// Copies what containerd writes to the process. At the end of the input the stream is shut down if `half_close`; it
/// stays open until the process closes its end.
pub(super) async fn input(fifo: pipe::Receiver, mut stream: UnixStream, half_close: bool) {
    let copied: io::Result<()> = async {
        while fifo.readable().await.is_ok() {
            let mut buffer = vec![0; CHUNK];
            loop {
                match fifo.try_read(&mut buffer) {
                    Ok(0) => return Ok(()),
                    Ok(count) => stream.write_all(buffer.get(..count).unwrap_or_default()).await?,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }
    .await;
    if let Err(error) = copied {
        // The process closed its input; it may.
        tracing::debug!("a process's input ended early: {error}");
        return;
    }
    if half_close {
        let _ = stream.shutdown().await;
    }
    // The guest sends nothing on an input stream; reading waits for its close.
    let mut byte = [0; 1];
    while stream.readable().await.is_ok() {
        match stream.try_read(&mut byte) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            _ => break,
        }
    }
}
