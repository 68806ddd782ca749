//! A process's stdio: containerd's fifos on one side, raw vsock streams into the guest on the other.
//!
//! Output fifos are open at both ends, so that a containerd that restarts finds everything that was written meanwhile;
//! they are closed when the guest says that no writer is left, which is the end of file that containerd waits for. Of
//! the input fifo the shim holds a write end, so that a containerd that restarts does not look like the end of the
//! input; `CloseIO` gives it up.

mod pump;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use ravelin_proto::agent::Stdio;
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinHandle};

use crate::machine::{Machine, MachineError};
use crate::privileges::unrestricted;
use crate::sync::{Cancelled, lock};

/// Time an output may stand still after the process's end before it is given up.
const STALL: Duration = Duration::from_secs(2);
/// Time a process's end may wait for its last words; what goes on writing is some other process.
const LAST_WORDS: Duration = Duration::from_secs(10);
/// The same on a terminal, which ends with its process: who holds it besides is not waited for.
const LAST_WORDS_ON_TERMINAL: Duration = Duration::from_secs(1);
/// Time the outputs of what has ended may stay open without a word from the guest.
const QUIET: Duration = Duration::from_secs(10);
/// The same on a terminal.
const QUIET_TERMINAL: Duration = Duration::from_millis(100);
/// For how many times as long they may stay open while the guest talks on.
const TALKING_ROUNDS: u32 = 5;

/// Stdio that could not be connected.
#[derive(Debug, thiserror::Error)]
pub enum StdioError {
    /// A kind of stdio that CRI does not use.
    #[error("not supported yet: {0:?} as a process's stdio; only fifos are")]
    NotAFifo(String),
    /// A fifo could not be opened.
    #[error("cannot open the process's {stream} fifo {path}")]
    Open {
        /// stdin, stdout or stderr.
        stream: &'static str,
        /// The fifo.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The node had no thread to open them in.
    #[error("cannot open the process's fifos")]
    Cancelled(#[from] Cancelled),
    /// The stream into the guest could not be had.
    #[error("cannot connect the process's {stream} to the pod's machine")]
    Connect {
        /// stdin, stdout or stderr.
        stream: &'static str,
        /// Why.
        #[source]
        source: MachineError,
    },
}

/// What containerd asks for; empty paths are `/dev/null`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Paths {
    /// Fifo the process reads from.
    pub stdin: String,
    /// Fifo it writes to.
    pub stdout: String,
    /// Fifo for its errors; unused with a terminal.
    pub stderr: String,
    /// One terminal instead of three pipes.
    pub terminal: bool,
}

/// The fifos of one process, open.
#[derive(Debug)]
pub struct Fifos {
    stdin: Option<(pipe::Receiver, pipe::Sender)>,
    stdout: Option<pipe::Sender>,
    stderr: Option<pipe::Sender>,
    terminal: bool,
}

impl Fifos {
    /// Opens the fifos, which are where containerd's client has put them, without waiting for their other ends.
    ///
    /// # Errors
    /// When one is not there or is no fifo.
    pub async fn open(paths: Paths) -> Result<Self, StdioError> {
        unrestricted("fifos", move || Self::open_here(&paths)).await
    }

    fn open_here(paths: &Paths) -> Result<Self, StdioError> {
        let stderr = if paths.terminal { "" } else { &paths.stderr };
        Ok(Self {
            stdin: path(&paths.stdin)?.map(input).transpose()?,
            stdout: path(&paths.stdout)?.map(|path| output("stdout", path)).transpose()?,
            stderr: path(stderr)?.map(|path| output("stderr", path)).transpose()?,
            terminal: paths.terminal,
        })
    }

    /// The ids the guest is told, drawn from `next`.
    #[must_use]
    pub fn ids(&self, next: &AtomicU64) -> Stdio {
        let id = |wanted: bool| if wanted { next.fetch_add(1, Ordering::Relaxed) } else { 0 };
        Stdio {
            stdin: id(self.stdin.is_some()),
            stdout: id(self.stdout.is_some()),
            stderr: id(self.stderr.is_some()),
            terminal: self.terminal,
        }
    }

    /// Connects every fifo to its stream and starts copying.
    ///
    /// # Errors
    /// When the machine does not take a connection.
    pub async fn connect(self, machine: &Machine, ids: &Stdio) -> Result<Io, StdioError> {
        let (stdin, stdout, stderr) = tokio::try_join!(
            stream(machine, "stdin", ids.stdin),
            stream(machine, "stdout", ids.stdout),
            stream(machine, "stderr", ids.stderr),
        )?;
        let mut io = Io::default();
        io.terminal = self.terminal;
        if let (Some((fifo, keeper)), Some(stream)) = (self.stdin, stdin) {
            io.keeper = Mutex::new(Some(keeper));
            io.input = Some(tokio::spawn(pump::input(fifo, stream, !self.terminal)).abort_handle());
        }
        for (fifo, stream) in [(self.stdout, stdout), (self.stderr, stderr)] {
            if let (Some(fifo), Some(stream)) = (fifo, stream) {
                io.copy_output(stream, fifo);
            }
        }
        Ok(io)
    }
}

/// A process's stdio at work. Dropping it ends the copying.
#[derive(Debug, Default)]
pub struct Io {
    keeper: Mutex<Option<pipe::Sender>>,
    input: Option<AbortHandle>,
    outputs: Mutex<Vec<JoinHandle<()>>>,
    /// Outputs that have not come to their ends.
    open: watch::Sender<usize>,
    /// How far the output is.
    progress: Arc<Progress>,
    terminal: bool,
}

/// How far a process's outputs are.
#[derive(Debug, Default)]
struct Progress {
    /// Bytes so far.
    moved: AtomicU64,
    /// Outputs whose reader is slow: they hold bytes that its fifo has no room for.
    held_up: AtomicUsize,
}

impl Io {
    /// Starts copying one output.
    fn copy_output(&self, stream: UnixStream, fifo: pipe::Sender) {
        self.open.send_modify(|open| *open += 1);
        let (open, progress) = (self.open.clone(), Arc::clone(&self.progress));
        let copying = tokio::spawn(async move {
            pump::output(stream, fifo, progress).await;
            open.send_modify(|open| *open = open.saturating_sub(1));
        });
        lock(&self.outputs).push(copying);
    }

    /// Gives up our write end of the input: when containerd closes its own, the process reads the end of file.
    pub fn close_stdin(&self) {
        lock(&self.keeper).take();
    }

    /// Ends the input: the process that read it is gone.
    pub fn end_input(&self) {
        self.close_stdin();
        if let Some(input) = &self.input {
            input.abort();
        }
    }

    /// Waits for the last words of a process that has ended, for a bounded time.
    ///
    /// A process's end is told only after this: some versions of containerd close their ends of the fifos as soon as they
    /// hear of it, and what was still on its way then would be lost.
    pub async fn settle(&self) {
        let most = if self.terminal { LAST_WORDS_ON_TERMINAL } else { LAST_WORDS };
        let _ = tokio::time::timeout(most, self.run_dry()).await;
    }

    /// Waits for the rest of the output, for a bounded time, and then ends what has not come to its own end.
    pub async fn drain(&self) {
        let _ = tokio::time::timeout(LAST_WORDS, self.run_dry()).await;
        self.close_outputs();
    }

    fn close_outputs(&self) {
        for output in lock(&self.outputs).drain(..) {
            output.abort();
        }
        self.open.send_replace(0);
    }

    /// Closes the outputs of a process that has ended, when the guest has said nothing on them for a while, or has talked on
    /// for too long: that is some other process, or a guest that wants to be waited for. One whose reader is slow stays open:
    /// a containerd that is away shall find everything when it comes back.
    pub async fn close_when_quiet(&self) {
        let quiet = if self.terminal { QUIET_TERMINAL } else { QUIET };
        let mut open = self.open.subscribe();
        let mut rounds = 0;
        loop {
            let before = self.progress.moved.load(Ordering::Relaxed);
            if tokio::time::timeout(quiet, open.wait_for(|open| *open == 0)).await.is_ok() {
                return;
            }
            if self.progress.held_up.load(Ordering::Relaxed) > 0 {
                continue;
            }
            rounds += 1;
            if rounds == TALKING_ROUNDS || self.progress.moved.load(Ordering::Relaxed) == before {
                self.close_outputs();
                return;
            }
        }
    }

    /// Waits until every output is copied to its end, or stands still for a while because something that outlived the
    /// process holds it open. One whose reader is slow does not: a busy containerd may come to it late.
    async fn run_dry(&self) {
        let mut open = self.open.subscribe();
        loop {
            let before = self.progress.moved.load(Ordering::Relaxed);
            if tokio::time::timeout(STALL, open.wait_for(|open| *open == 0)).await.is_ok() {
                return;
            }
            let stands_still = self.progress.moved.load(Ordering::Relaxed) == before;
            if stands_still && self.progress.held_up.load(Ordering::Relaxed) == 0 {
                return;
            }
        }
    }
}

impl Drop for Io {
    fn drop(&mut self) {
        self.end_input();
        for output in lock(&self.outputs).iter() {
            output.abort();
        }
    }
}

/// A fifo's path as containerd gives it, plain or as a URI.
fn path(text: &str) -> Result<Option<&str>, StdioError> {
    let path = text.strip_prefix("fifo://").unwrap_or(text);
    if path.is_empty() {
        return Ok(None);
    }
    if !path.starts_with('/') {
        return Err(StdioError::NotAFifo(text.to_owned()));
    }
    Ok(Some(path))
}

fn input(path: &str) -> Result<(pipe::Receiver, pipe::Sender), StdioError> {
    let failed = |source| StdioError::Open { stream: "stdin", path: path.into(), source };
    let reader = pipe::OpenOptions::new().open_receiver(path).map_err(failed)?;
    let keeper = pipe::OpenOptions::new().open_sender(path).map_err(failed)?;
    Ok((reader, keeper))
}

fn output(stream: &'static str, path: &str) -> Result<pipe::Sender, StdioError> {
    let failed = |source| StdioError::Open { stream, path: path.into(), source };
    pipe::OpenOptions::new().read_write(true).open_sender(path).map_err(failed)
}

/// Opens the stream `id` into the guest; none for 0.
async fn stream(machine: &Machine, name: &'static str, id: u64) -> Result<Option<UnixStream>, StdioError> {
    if id == 0 {
        return Ok(None);
    }
    let opened = machine.open_stream(id).await;
    opened.map(Some).map_err(|source| StdioError::Connect { stream: name, source })
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
