//! Orders to the file server and the answers to them.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use ravelin_fs::control::{answer, order_volume};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::FileServerError;
use crate::error::bounded;

/// Longest message of the server's that is passed on, in bytes.
const MAX_MESSAGE: usize = 512;

/// The shim's end of the control socket.
#[derive(Debug)]
pub(super) struct Control {
    socket: OwnedFd,
    /// Orders that were given up before their answers had come.
    unanswered: u32,
}

impl Control {
    pub fn new(socket: OwnedFd) -> Self {
        Self { socket, unanswered: 0 }
    }

    /// Hands a directory over. Blocks, up to the socket's timeout for each answer that is due.
    pub fn add(
        &mut self,
        number: u32,
        read_only: bool,
        tree: &OwnedFd,
        patience: Duration,
    ) -> Result<(), FileServerError> {
        let socket = |error: io::Error| match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => FileServerError::Silent(patience),
            io::ErrorKind::Other => FileServerError::Refused(bounded(&error.to_string(), MAX_MESSAGE)),
            _ => FileServerError::Socket(error),
        };
        // What was not heard in time has come by now, or the server is still at work at it.
        while self.unanswered > 0 {
            match answer(&self.socket).map_err(socket) {
                Ok(()) | Err(FileServerError::Refused(_)) => self.unanswered -= 1,
                Err(error) => return Err(error),
            }
        }
        order_volume(&self.socket, number, read_only, tree).map_err(socket)?;
        self.unanswered += 1;
        let answered = answer(&self.socket).map_err(socket);
        if matches!(answered, Ok(()) | Err(FileServerError::Refused(_))) {
            self.unanswered -= 1;
        }
        answered
    }
}

/// Makes the two ends for orders, ours with this deadline for each packet.
pub(super) fn sockets(patience: Duration) -> io::Result<(OwnedFd, OwnedFd)> {
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    for direction in [Timeout::Recv, Timeout::Send] {
        set_socket_timeout(&ours, direction, Some(patience))?;
    }
    Ok((ours, theirs))
}
