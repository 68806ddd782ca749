//! Tasks that carry bytes between a process and the host.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use super::pipes::{Endpoints, Ends};
use super::registry::BoxStream;

/// Bytes carried at once. Nothing else is buffered here: a host that reads slowly makes the process wait.
const CHUNK: usize = 64 << 10;

/// Most that is still sent once nobody comes for more: what the largest pipe holds. Whoever has the other end may write on
/// for ever.
const REST: usize = 1 << 20;

/// Tells output pumps that no one will come for more: what is in the pipe is sent, then the stream closed, even if
/// a process somewhere still holds the other end.
pub type Finish = Arc<Notify>;

/// The pumps of one process.
#[derive(Debug, Default)]
pub struct Pumps {
    finish: Finish,
    input: Option<AbortHandle>,
}

impl Pumps {
    /// Starts pumps between a process's pipes and the host.
    ///
    /// # Errors
    ///
    /// When a descriptor cannot be watched.
    pub fn over_pipes(endpoints: Endpoints, ends: Ends) -> io::Result<Self> {
        let mut pumps = Self::default();
        if let (Some(stream), Some(fd)) = (endpoints.stdin, ends.stdin) {
            let fd = watch(fd, Interest::WRITABLE)?;
            pumps.input = Some(tokio::spawn(async move { input(stream, &fd).await }).abort_handle());
        }
        for (stream, fd) in [(endpoints.stdout, ends.stdout), (endpoints.stderr, ends.stderr)] {
            if let (Some(stream), Some(fd)) = (stream, fd) {
                let fd = watch(fd, Interest::READABLE)?;
                let finish = Arc::clone(&pumps.finish);
                tokio::spawn(async move { output(&fd, stream, &finish).await });
            }
        }
        Ok(pumps)
    }

    /// Starts pumps between a terminal's master side and the host.
    ///
    /// # Errors
    ///
    /// When the descriptor cannot be watched.
    pub fn over_terminal(endpoints: Endpoints, master: &OwnedFd) -> io::Result<Self> {
        let mut pumps = Self::default();
        let master = master.try_clone()?;
        rustix::fs::fcntl_setfl(&master, rustix::fs::OFlags::NONBLOCK)?;
        let master = Arc::new(watch(master, Interest::READABLE | Interest::WRITABLE)?);
        if let Some(stream) = endpoints.stdin {
            let master = Arc::clone(&master);
            pumps.input = Some(tokio::spawn(async move { input(stream, &master).await }).abort_handle());
        }
        if let Some(stream) = endpoints.stdout {
            let finish = Arc::clone(&pumps.finish);
            tokio::spawn(async move { output(&master, stream, &finish).await });
        }
        Ok(pumps)
    }

    /// Ends the input and lets the output run dry.
    pub fn finish(&self) {
        if let Some(input) = &self.input {
            input.abort();
        }
        // One permit for each output pump, kept if it is busy sending.
        self.finish.notify_waiters();
        self.finish.notify_one();
    }
}

fn watch(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor is owned, and neither replaced nor closed while it is registered.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
}

/// Host to process, until the host half-closes (then the process sees the end of its input) or the process is gone.
async fn input(mut stream: BoxStream, fd: &AsyncFd<OwnedFd>) {
    let mut buffer = vec![0; CHUNK];
    loop {
        let Ok(read @ 1..) = stream.read(&mut buffer).await else { return };
        let mut rest = buffer.get(..read).unwrap_or_default();
        while !rest.is_empty() {
            let written = fd.async_io(Interest::WRITABLE, |fd| Ok(rustix::io::write(fd, rest)?)).await;
            let Ok(written @ 1..) = written else { return };
            rest = rest.get(written..).unwrap_or_default();
        }
    }
}

/// Process to host, until every writer is gone or `finish` is told.
async fn output(fd: &AsyncFd<OwnedFd>, mut stream: BoxStream, finish: &Notify) {
    let mut buffer = vec![0; CHUNK];
    let mut connected = true;
    loop {
        let read = tokio::select! {
            biased;
            // First: a process that always has more to say is not listened to for ever.
            () = finish.notified() => {
                // Others wait for the same word.
                finish.notify_one();
                break drain(fd.get_ref(), &mut buffer, &mut stream).await;
            }
            read = fd.async_io(Interest::READABLE, |fd| Ok(rustix::io::read(fd, &mut buffer)?)) => read,
        };
        // A terminal whose last user is gone says EIO.
        let Ok(read @ 1..) = read else { break };
        if connected {
            // A host that went away must not stop the process: what it writes is dropped.
            connected = stream.write_all(buffer.get(..read).unwrap_or_default()).await.is_ok();
        }
    }
    let _ = stream.shutdown().await;
}

/// Sends what is there now.
async fn drain(fd: &OwnedFd, buffer: &mut [u8], stream: &mut BoxStream) {
    let mut sent = 0;
    while sent < REST
        && let Ok(read @ 1..) = rustix::io::read(fd, &mut *buffer)
    {
        sent += read;
        if stream.write_all(buffer.get(..read).unwrap_or_default()).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::stdio::prepare;

    fn endpoints() -> (Endpoints, [tokio::io::DuplexStream; 3]) {
        let (a, stdin) = tokio::io::duplex(1024);
        let (b, stdout) = tokio::io::duplex(1024);
        let (c, stderr) = tokio::io::duplex(1024);
        let boxed = |stream| Some(Box::new(stream) as BoxStream);
        (Endpoints { stdin: boxed(stdin), stdout: boxed(stdout), stderr: boxed(stderr) }, [a, b, c])
    }

    #[tokio::test]
    async fn bytes_and_ends_pass_both_ways() {
        let (endpoints, [mut host_in, mut host_out, mut host_err]) = endpoints();
        let uid = rustix::process::getuid().as_raw();
        let ([stdin, stdout, stderr], ends) = prepare(&endpoints, uid).unwrap();
        let _pumps = Pumps::over_pipes(endpoints, ends).unwrap();
        drop(stderr);
        let process = tokio::task::spawn_blocking(move || {
            // cat
            let mut all = Vec::new();
            std::io::Read::read_to_end(&mut std::fs::File::from(stdin), &mut all).unwrap();
            std::io::Write::write_all(&mut std::fs::File::from(stdout), &all).unwrap();
        });
        let sent: Vec<u8> = (0..1_000_000_u32).map(|number| number.to_le_bytes()[0]).collect();
        let copy = sent.clone();
        tokio::spawn(async move {
            host_in.write_all(&copy).await.unwrap();
            host_in.shutdown().await.unwrap();
        });
        let mut got = Vec::new();
        host_out.read_to_end(&mut got).await.unwrap();
        assert!(got == sent);
        let mut nothing = Vec::new();
        host_err.read_to_end(&mut nothing).await.unwrap();
        assert!(nothing.is_empty());
        process.await.unwrap();
    }

    #[tokio::test]
    async fn finish_ends_outputs_whose_writers_live_on() {
        let (endpoints, [_host_in, mut host_out, mut host_err]) = endpoints();
        let uid = rustix::process::getuid().as_raw();
        let ([_stdin, stdout, _stderr], ends) = prepare(&endpoints, uid).unwrap();
        let pumps = Pumps::over_pipes(endpoints, ends).unwrap();
        rustix::io::write(&stdout, b"last").unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
        pumps.finish();
        let mut got = Vec::new();
        tokio::time::timeout(Duration::from_secs(5), host_out.read_to_end(&mut got)).await.unwrap().unwrap();
        assert_eq!(got, b"last");
        tokio::time::timeout(Duration::from_secs(5), host_err.read_to_end(&mut got)).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn finish_ends_outputs_whose_writers_write_on() {
        let (endpoints, [_host_in, mut host_out, _host_err]) = endpoints();
        let uid = rustix::process::getuid().as_raw();
        let ([_stdin, stdout, _stderr], ends) = prepare(&endpoints, uid).unwrap();
        let pumps = Pumps::over_pipes(endpoints, ends).unwrap();
        // yes, until its pipe is closed
        let yes = std::thread::spawn(move || while rustix::io::write(&stdout, &[b'y'; 4096]).is_ok() {});
        host_out.read_exact(&mut [0; 4096]).await.unwrap();
        pumps.finish();
        let mut rest = Vec::new();
        tokio::time::timeout(Duration::from_secs(20), host_out.read_to_end(&mut rest))
            .await
            .unwrap()
            .unwrap();
        yes.join().unwrap();
    }

    #[tokio::test]
    async fn what_is_sent_at_the_end_has_an_end() {
        let endless = rustix::fs::open("/dev/zero", rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty());
        let (guest, mut host) = tokio::io::duplex(CHUNK);
        let mut stream: BoxStream = Box::new(guest);
        let drained = async move { drain(&endless.unwrap(), &mut [0; CHUNK], &mut stream).await };
        let mut sent = Vec::new();
        let all = async { tokio::join!(drained, host.read_to_end(&mut sent)).1 };
        tokio::time::timeout(Duration::from_secs(20), all).await.unwrap().unwrap();
        assert_eq!(sent.len(), REST);
    }
}
