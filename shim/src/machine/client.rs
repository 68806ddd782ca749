//! Requests to the machine and the replies to them.

use std::collections::HashMap;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ravelin_vmm::control::transport::{self, TransportError};
use ravelin_vmm::control::{Answer, Command, Message, Request};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use super::{Exit, MachineError, exit};
use crate::sync::lock;

/// Longest part of a machine's error message that is passed on, in characters.
const MAX_MESSAGE: usize = 512;
/// Senseless packets after which the machine is no longer listened to.
const MAX_NONSENSE: u32 = 64;
/// Most answers that are still to come; with more than that given up, those that come are senseless.
const MAX_PENDING: usize = 4096;
/// Time between the machine's last word and the end of its process, before the two are reported apart.
const EXIT_GRACE: Duration = Duration::from_secs(2);

type Reply = Result<Answer, String>;

/// The shim's end of a control socket.
#[derive(Debug)]
pub(super) struct Client {
    socket: Arc<AsyncFd<OwnedFd>>,
    pending: Arc<Mutex<Pending>>,
    reader: JoinHandle<()>,
    exit: watch::Receiver<Option<Exit>>,
    /// Becomes true when no more answers can come.
    over: watch::Receiver<bool>,
}

#[derive(Debug, Default)]
struct Pending {
    last_id: u64,
    /// By the request's number; empty when the caller has given up, because a late answer is none to complain about.
    replies: HashMap<u64, Option<oneshot::Sender<Reply>>>,
    closed: bool,
}

/// Forgets a request whose caller no longer waits.
struct Ticket {
    pending: Arc<Mutex<Pending>>,
    id: u64,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut pending = lock(&self.pending);
        if let Some(waiting) = pending.replies.get_mut(&self.id) {
            *waiting = None;
        }
    }
}

impl Client {
    pub fn new(control: OwnedFd, exit: watch::Receiver<Option<Exit>>) -> Result<Self, MachineError> {
        let plumbing = |source| MachineError::Plumbing { what: "control socket", source };
        rustix::io::ioctl_fionbio(&control, true).map_err(|errno| plumbing(errno.into()))?;
        // SAFETY: the AsyncFd owns the descriptor, which nobody else closes, and an OwnedFd never changes its number.
        let socket = unsafe { AsyncFd::register(control) }.map_err(|error| plumbing(error.into()))?;
        let socket = Arc::new(socket);
        let pending = Arc::new(Mutex::new(Pending::default()));
        let (ending, over) = watch::channel(false);
        let reading = read(Arc::clone(&socket), Arc::clone(&pending));
        let reader = tokio::spawn(async move {
            reading.await;
            let _ = ending.send(true);
        });
        Ok(Self { socket, pending, reader, exit, over })
    }

    /// Ends the conversation; the machine takes that as its order to end.
    pub fn close(&self) {
        self.reader.abort();
        let _ = rustix::net::shutdown(self.socket.get_ref(), rustix::net::Shutdown::Both);
    }

    /// Waits until the machine has broken off the conversation, or has been cut off for breaking the protocol.
    pub async fn over(&self) {
        // An error means that the reader is gone, which is the same.
        let _ = self.over.clone().wait_for(|over| *over).await;
    }

    /// Sends a request and waits for its answer.
    pub async fn request(
        &self,
        name: &'static str,
        command: Command,
        fds: &[BorrowedFd<'_>],
        deadline: Duration,
    ) -> Result<Answer, MachineError> {
        let (ticket, reply) = self.enter();
        let Some((ticket, reply)) = ticket.zip(reply) else {
            return Err(self.gone(name).await);
        };
        let request = Request { id: ticket.id, command };
        let exchange = async {
            let sent = self.socket.async_io(Interest::WRITABLE, |socket| {
                transport::send(socket, &request, fds).map_err(io::Error::from)
            });
            match sent.await {
                Ok(()) => {}
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) =>
                {
                    return Err(self.gone(name).await);
                }
                Err(source) => return Err(MachineError::Send { command: name, source }),
            }
            match reply.await {
                Ok(Ok(answer)) => Ok(answer),
                Ok(Err(message)) => {
                    let message = message.chars().filter(|c| !c.is_control()).take(MAX_MESSAGE).collect();
                    Err(MachineError::Refused { command: name, message })
                }
                Err(_) => Err(self.gone(name).await),
            }
        };
        let mut exit = self.exit.clone();
        tokio::select! {
            biased;
            result = exchange => result,
            exit = exit::ended(&mut exit) => Err(MachineError::Ended(exit)),
            () = tokio::time::sleep(deadline) => Err(MachineError::Timeout { command: name, after: deadline }),
        }
    }

    fn enter(&self) -> (Option<Ticket>, Option<oneshot::Receiver<Reply>>) {
        let mut pending = lock(&self.pending);
        if pending.closed {
            return (None, None);
        }
        pending.last_id += 1;
        let id = pending.last_id;
        let (sender, receiver) = oneshot::channel();
        if pending.replies.len() >= MAX_PENDING {
            pending.replies.retain(|_, waiting| waiting.is_some());
        }
        pending.replies.insert(id, Some(sender));
        (Some(Ticket { pending: Arc::clone(&self.pending), id }), Some(receiver))
    }

    /// The error for a closed conversation: how the process ended, if it ends now.
    async fn gone(&self, command: &'static str) -> MachineError {
        match tokio::time::timeout(EXIT_GRACE, exit::ended(&mut self.exit.clone())).await {
            Ok(exit) => MachineError::Ended(exit),
            Err(_) => MachineError::Send {
                command,
                source: io::Error::new(io::ErrorKind::BrokenPipe, "the machine closed its control socket"),
            },
        }
    }
}

/// Hands replies to those who wait, until the machine closes its end or talks nonsense.
async fn read(socket: Arc<AsyncFd<OwnedFd>>, pending: Arc<Mutex<Pending>>) {
    let mut nonsense = 0;
    loop {
        let received =
            socket.async_io(Interest::READABLE, |socket| match transport::recv::<Message>(socket) {
                Ok(packet) => Ok(Ok(packet)),
                Err(TransportError::Socket(error)) => Err(error),
                Err(other) => Ok(Err(other)),
            });
        match received.await {
            Ok(Ok(Some(packet))) => match packet.message {
                Message::Reply { id, result } => {
                    let waiting = lock(&pending).replies.remove(&id);
                    match waiting {
                        // The caller may have given up in this very moment.
                        Some(Some(sender)) => drop(sender.send(result)),
                        Some(None) => tracing::debug!(id, "the machine answered too late"),
                        None => {
                            tracing::warn!(id, "the machine answered a request that nobody waits for");
                            nonsense += 1;
                        }
                    }
                }
                Message::Exited(reason) => {
                    tracing::debug!(?reason, "the machine says that it ends");
                    // It has one end.
                    nonsense += 1;
                }
            },
            Ok(Ok(None)) => break,
            Ok(Err(error)) => {
                tracing::warn!("the machine does not keep to the control protocol: {error}");
                nonsense += 1;
            }
            Err(error) => {
                tracing::debug!("the control socket failed: {error}");
                break;
            }
        }
        if nonsense > MAX_NONSENSE {
            tracing::error!("the machine keeps breaking the control protocol; it is no longer listened to");
            break;
        }
    }
    let mut pending = lock(&pending);
    pending.closed = true;
    pending.replies.clear();
}
