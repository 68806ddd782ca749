//! Packets of JSON with file descriptors over a `SOCK_SEQPACKET` Unix socket.
//!
//! Both ends use these functions. They never block by themselves beyond what the socket does: on a non-blocking
//! socket they fail with [`io::ErrorKind::WouldBlock`], which is what an event loop expects.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{MAX_PACKET_BYTES, MAX_PACKET_FDS};

/// A packet that could not be sent or received.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The socket failed, or would block.
    #[error("The control socket failed")]
    Socket(#[source] io::Error),
    /// A packet larger than [`MAX_PACKET_BYTES`].
    #[error("A control packet exceeds {MAX_PACKET_BYTES} bytes")]
    TooLarge,
    /// More descriptors than [`MAX_PACKET_FDS`], or control data of another kind.
    #[error("A control packet carries more than {MAX_PACKET_FDS} file descriptors, or was cut short")]
    TooManyFds,
    /// Not the JSON document that was expected.
    #[error("A control packet is not a valid message")]
    Malformed(#[source] serde_json::Error),
}

impl TransportError {
    /// Whether the socket is non-blocking and the call has to be repeated when it is ready.
    #[must_use]
    pub fn would_block(&self) -> bool {
        matches!(self, Self::Socket(error) if error.kind() == io::ErrorKind::WouldBlock)
    }
}

impl From<TransportError> for io::Error {
    fn from(error: TransportError) -> Self {
        match error {
            TransportError::Socket(error) => error,
            other => Self::new(io::ErrorKind::InvalidData, other),
        }
    }
}

/// A received packet.
#[derive(Debug)]
pub struct Packet<T> {
    /// Its document.
    pub message: T,
    /// The file descriptors that came with it, in the sender's order, close-on-exec.
    pub fds: Vec<OwnedFd>,
}

/// Makes a connected pair of control sockets, both close-on-exec and blocking.
///
/// # Errors
/// When the process has no descriptors left.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Sends `message` with `fds` attached as one packet.
///
/// # Errors
/// [`TransportError::Socket`] when the socket fails, would block or has no other end any more;
/// [`TransportError::TooLarge`] and [`TransportError::TooManyFds`] before anything is sent.
pub fn send<T: Serialize>(
    socket: impl AsFd,
    message: &T,
    fds: &[BorrowedFd<'_>],
) -> Result<(), TransportError> {
    let bytes = serde_json::to_vec(message).map_err(TransportError::Malformed)?;
    if bytes.len() > MAX_PACKET_BYTES {
        return Err(TransportError::TooLarge);
    }
    if fds.len() > MAX_PACKET_FDS {
        return Err(TransportError::TooManyFds);
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_PACKET_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(TransportError::TooManyFds);
    }
    loop {
        match rustix::net::sendmsg(&socket, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL) {
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(TransportError::Socket(errno.into())),
        }
    }
}

/// Receives one packet; `None` when the other end is closed.
///
/// # Errors
/// [`TransportError::Socket`] when the socket fails or would block. The other kinds mean that the packet was taken
/// off the socket and dropped together with its descriptors; the peer does not keep to the protocol.
pub fn recv<T: DeserializeOwned>(socket: impl AsFd) -> Result<Option<Packet<T>>, TransportError> {
    // One byte more than is allowed shows a packet that is too large.
    let mut bytes = vec![0; MAX_PACKET_BYTES + 1];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_PACKET_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut was_reset = false;
    let received = loop {
        let mut buffers = [IoSliceMut::new(&mut bytes)];
        match rustix::net::recvmsg(&socket, &mut buffers, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Ok(received) => break received,
            Err(rustix::io::Errno::INTR) => {}
            // A peer that closed without reading everything is reported once, ahead of its last words.
            Err(rustix::io::Errno::CONNRESET) if !was_reset => was_reset = true,
            Err(errno) => return Err(TransportError::Socket(errno.into())),
        }
    };
    let mut fds = Vec::new();
    let mut foreign = false;
    for message in control.drain() {
        match message {
            RecvAncillaryMessage::ScmRights(rights) => fds.extend(rights),
            _ => foreign = true,
        }
    }
    if foreign || received.flags.contains(ReturnFlags::CTRUNC) || fds.len() > MAX_PACKET_FDS {
        return Err(TransportError::TooManyFds);
    }
    if received.bytes > MAX_PACKET_BYTES || received.flags.contains(ReturnFlags::TRUNC) {
        return Err(TransportError::TooLarge);
    }
    let Some(document) = bytes.get(..received.bytes).filter(|document| !document.is_empty()) else {
        return Ok(None);
    };
    let message = serde_json::from_slice(document).map_err(TransportError::Malformed)?;
    Ok(Some(Packet { message, fds }))
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;

    use super::*;
    use crate::control::{Command, Request};

    fn request(id: u64) -> Request {
        Request { id, command: Command::Connect { port: 7, within_ms: 1000 } }
    }

    #[test]
    fn a_packet_arrives_with_its_descriptors_in_order() {
        let (left, right) = pair().unwrap();
        let (reader, writer) = std::io::pipe().unwrap();
        send(&left, &request(1), &[reader.as_fd(), writer.as_fd()]).unwrap();
        let packet = recv::<Request>(&right).unwrap().unwrap();
        assert_eq!(packet.message, request(1));
        assert_eq!(packet.fds.len(), 2);
        let mut written = std::fs::File::from(packet.fds.into_iter().nth(1).unwrap());
        written.write_all(b"x").unwrap();
    }

    #[test]
    fn a_closed_end_is_the_end() {
        let (left, right) = pair().unwrap();
        drop(left);
        assert!(recv::<Request>(&right).unwrap().is_none());
    }

    #[test]
    fn the_last_words_of_a_peer_that_did_not_listen_arrive() {
        let (left, right) = pair().unwrap();
        send(&left, &request(1), &[]).unwrap();
        send(&right, &request(2), &[]).unwrap();
        drop(right);
        assert_eq!(recv::<Request>(&left).unwrap().unwrap().message.id, 2);
        assert!(recv::<Request>(&left).unwrap().is_none());
    }

    #[test]
    fn an_empty_nonblocking_socket_would_block() {
        let (_left, right) = pair().unwrap();
        rustix::io::ioctl_fionbio(&right, true).unwrap();
        assert!(recv::<Request>(&right).unwrap_err().would_block());
    }

    #[test]
    fn too_many_descriptors_are_refused_by_both_ends() {
        let (left, right) = pair().unwrap();
        let (reader, _writer) = std::io::pipe().unwrap();
        let fds = vec![reader.as_fd(); MAX_PACKET_FDS + 1];
        assert!(matches!(send(&left, &request(1), &fds), Err(TransportError::TooManyFds)));

        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_PACKET_FDS + 8))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds = vec![reader.as_fd(); MAX_PACKET_FDS + 8];
        assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
        rustix::net::sendmsg(&left, &[IoSlice::new(b"{}")], &mut control, SendFlags::empty()).unwrap();
        assert!(matches!(recv::<Request>(&right), Err(TransportError::TooManyFds)));
    }

    #[test]
    fn oversized_and_malformed_packets_are_refused() {
        let (left, right) = pair().unwrap();
        rustix::net::send(&left, &vec![b' '; MAX_PACKET_BYTES + 1], SendFlags::empty()).unwrap();
        assert!(matches!(recv::<Request>(&right), Err(TransportError::TooLarge)));
        rustix::net::send(&left, b"{]", SendFlags::empty()).unwrap();
        assert!(matches!(recv::<Request>(&right), Err(TransportError::Malformed(_))));
        send(&left, &request(3), &[]).unwrap();
        assert_eq!(recv::<Request>(&right).unwrap().unwrap().message.id, 3);
    }
}
