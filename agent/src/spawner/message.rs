//! What agent and spawner say to each other: one JSON document per packet, with descriptors attached.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use oci_spec::runtime::{LinuxPersonalityDomain, PosixRlimit};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, Shutdown, recvmsg, sendmsg, shutdown,
    sockopt::{Timeout, set_socket_timeout},
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::error::{AgentError, shortened};
use crate::namespaces::Ids;

/// Largest packet, in bytes.
const MAX_PACKET: usize = 32 << 10;
/// The answer that something failed; the end of a long text is left out.
pub(super) fn failure(text: String) -> Reply {
    Reply::Error(shortened(text))
}
/// Most descriptors in one packet.
const MAX_FDS: usize = 5;

/// What the spawner can be asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Build a container from the bundle's `config.json`.
    Create {
        /// Container id.
        id: String,
        /// Directory of `config.json` and, if it has a seccomp filter, `seccomp.bpf`.
        bundle: PathBuf,
        /// The AppArmor profile of its program.
        profile: Option<String>,
        /// What its process's limits are, if it is in a user namespace of its pod's.
        limits: Vec<PosixRlimit>,
        /// The terminal to give it.
        console: Option<Console>,
    },
    /// Run a further process in a started container. Before the standard descriptors come one of the container's first
    /// process and one of a file with the OCI process, JSON.
    Exec {
        /// Container id.
        id: String,
        /// The container's bundle.
        bundle: PathBuf,
        /// Pid of the container's first process.
        init: i32,
        /// The container is in a user namespace of its pod's.
        user_namespace: bool,
        /// The container's personality.
        personality: Option<LinuxPersonalityDomain>,
        /// The terminal to give it.
        console: Option<Console>,
    },
    /// Make a PID namespace whose init only reaps; with `ids`, in a new user namespace with them, which has a network, an IPC and
    /// a UTS namespace.
    Pause {
        /// The users and groups of the user namespace.
        ids: Option<Ids>,
    },
}

/// A terminal to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Console {
    /// Columns and rows, if known.
    pub size: Option<(u16, u16)>,
    /// The process's user, who gets the terminal.
    pub uid: u32,
}

/// What the builder answers, and what an exec's process tells the builder.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Reply {
    /// The terminal's master side is attached; the answer proper follows.
    Console,
    /// An exec's process has nothing left to do but execute its program.
    Going,
    /// The new process's pid. The builder waits for one more packet and kills the process if it does not come.
    Pid(i32),
    /// A sentence about what went wrong.
    Error(String),
}

/// A builder that was not done in time, and has been told that nobody wants what it makes. Until it has ended it may
/// make files and cgroups of its container, or take them back.
#[derive(Debug)]
pub struct LateBuilder(OwnedFd);

impl LateBuilder {
    /// Of the agent's end of the builder's socket.
    pub(super) fn new(socket: OwnedFd) -> Self {
        // What it makes it keeps only if it hears something.
        let _ = shutdown(&socket, Shutdown::Write);
        Self(socket)
    }

    /// Waits until it has ended, but not beyond `deadline`; whether it has.
    #[must_use]
    pub fn has_ended(&self, deadline: Instant) -> bool {
        loop {
            match receive_by::<Reply>(&self.0, deadline) {
                // Its answer comes too late.
                Ok(_) => {}
                Err(SpawnerError::Channel(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                    return false;
                }
                Err(_) => return true,
            }
        }
    }
}

/// Why a request to the spawner failed.
#[derive(Debug, thiserror::Error)]
pub enum SpawnerError {
    /// The builder failed; its words.
    #[error("{0}")]
    Build(String),
    /// The builder ended without an answer.
    #[error("the process that builds containers gave no answer")]
    NoAnswer,
    /// The builder was not done by the caller's deadline.
    #[error("not made within {:.0} s", .patience.as_secs_f64())]
    Timeout {
        /// How far away the deadline was.
        patience: Duration,
        /// The builder; whoever is to take down what it makes takes it.
        builder: Option<LateBuilder>,
    },
    /// The process was made and could not be taken over.
    #[error(transparent)]
    Refused(#[from] AgentError),
    /// The socket between the two failed.
    #[error("talk to the process that builds containers: {0}")]
    Channel(#[source] io::Error),
}

/// Sends one packet.
pub(super) fn send<T: Serialize>(
    socket: impl AsFd,
    message: &T,
    fds: &[BorrowedFd<'_>],
) -> Result<(), SpawnerError> {
    let packet = serde_json::to_vec(message).map_err(|error| SpawnerError::Channel(error.into()))?;
    if packet.len() > MAX_PACKET || fds.len() > MAX_FDS {
        return Err(SpawnerError::Channel(io::ErrorKind::FileTooLarge.into()));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(fds));
    }
    sendmsg(socket, &[IoSlice::new(&packet)], &mut control, SendFlags::NOSIGNAL)
        .map_err(|error| SpawnerError::Channel(error.into()))?;
    Ok(())
}

/// [`receive`] that gives up at `deadline`, with an error of the kind `WouldBlock`.
pub(super) fn receive_by<T: DeserializeOwned>(
    socket: impl AsFd,
    deadline: Instant,
) -> Result<(T, Vec<OwnedFd>), SpawnerError> {
    let left = deadline.saturating_duration_since(Instant::now());
    // Nought would be no timeout at all.
    let left = left.max(Duration::from_millis(1));
    set_socket_timeout(&socket, Timeout::Recv, Some(left))
        .map_err(|error| SpawnerError::Channel(error.into()))?;
    receive(socket)
}

/// Receives one packet; [`SpawnerError::NoAnswer`] when the other end is gone.
pub(super) fn receive<T: DeserializeOwned>(socket: impl AsFd) -> Result<(T, Vec<OwnedFd>), SpawnerError> {
    let mut packet = vec![0; MAX_PACKET];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        match recvmsg(&socket, &mut [IoSliceMut::new(&mut packet)], &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::CONNRESET) => return Err(SpawnerError::NoAnswer),
            other => break other.map_err(|error| SpawnerError::Channel(error.into()))?,
        }
    };
    if received.bytes == 0 {
        return Err(SpawnerError::NoAnswer);
    }
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    packet.truncate(received.bytes);
    let message = serde_json::from_slice(&packet).map_err(|error| SpawnerError::Channel(error.into()))?;
    Ok((message, fds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_arrives_with_its_descriptors() {
        let (left, right) = super::super::pair().unwrap();
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let request = Request::Create {
            id: "c".into(),
            bundle: "/b".into(),
            profile: Some("p".into()),
            limits: Vec::new(),
            console: None,
        };
        send(&left, &request, &[reader.as_fd(), writer.as_fd()]).unwrap();
        let (got, fds) = receive::<Request>(&right).unwrap();
        assert_eq!(got, request);
        assert_eq!(fds.len(), 2);
    }

    #[test]
    fn an_error_of_any_length_arrives() {
        let (left, right) = super::super::pair().unwrap();
        send(&left, &failure("ä".repeat(100_000)), &[]).unwrap();
        let (Reply::Error(text), _) = receive::<Reply>(&right).unwrap() else { panic!("no error") };
        assert!(text.starts_with("ää") && text.ends_with("ä…"), "{}", text.len());
    }

    #[test]
    fn who_waited_in_vain_hears_how_long() {
        let builder = LateBuilder::new(super::super::pair().unwrap().0);
        let late = SpawnerError::Timeout { patience: Duration::from_millis(59_900), builder: Some(builder) };
        assert_eq!(late.to_string(), "not made within 60 s");
    }

    #[test]
    fn a_late_builder_hears_that_nobody_wants_it_and_has_ended_when_its_socket_closes() {
        let (ours, theirs) = super::super::pair().unwrap();
        let late = LateBuilder::new(ours);
        assert!(!late.has_ended(Instant::now() + Duration::from_millis(20)));
        send(&theirs, &Reply::Pid(7), &[]).unwrap();
        assert!(matches!(receive::<()>(&theirs), Err(SpawnerError::NoAnswer)));
        assert!(!late.has_ended(Instant::now() + Duration::from_millis(20)));
        drop(theirs);
        assert!(late.has_ended(Instant::now() + Duration::from_secs(60)));
    }

    #[test]
    fn a_closed_peer_is_no_answer() {
        let (left, right) = super::super::pair().unwrap();
        drop(right);
        assert!(matches!(receive::<Reply>(&left), Err(SpawnerError::NoAnswer)));
    }
}
