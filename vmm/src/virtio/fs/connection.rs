//! The connection to a file server: a `SOCK_SEQPACKET` Unix socket, each packet of which is one message.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvFlags};

use super::message::{REPLY_HEADER, Reply};
use crate::event::Registrar;
use crate::virtio::buffers::Buffers;

/// Why a connection cannot be used any longer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error("it has hung up")]
    Closed,
    #[error("its socket fails")]
    Socket(#[source] io::Error),
    #[error("it sent a packet of {0} bytes, which is shorter than a reply's header")]
    Short(usize),
    #[error("it sent a reply of {length} bytes that says that it has {said}")]
    Length { length: usize, said: u32 },
    #[error("it sent a reply with the error {0}, which is none")]
    NoError(i32),
    #[error("it sent a reply to a request that nobody waits for")]
    Unexpected,
    #[error("it sent a reply of {length} bytes to a request that has room for {room}")]
    TooLong { length: usize, room: usize },
}

/// What became of a request.
#[derive(Debug)]
pub(super) enum Sent {
    /// It is the server's.
    Yes,
    /// The socket has no room; it will say when it has some.
    Later,
    /// The node has no memory for it, by this error number. A long packet needs some in one piece, which the kernel makes when it
    /// is asked again.
    NoMemory(i32),
    /// The node cannot carry this one, for the reason of this error number: the socket's buffer is smaller than the request.
    Refused(i32),
}

/// A server that is believed to be alive.
#[derive(Debug)]
pub(super) struct Connection {
    socket: OwnedFd,
    registrar: Registrar,
    token: u32,
    /// Whether the socket has no room and is waited for until it has.
    full: bool,
}

impl Connection {
    /// Takes a socket, which is from now on reported as `token` while it has packets.
    pub fn new(socket: OwnedFd, registrar: &Registrar, token: u32) -> io::Result<Self> {
        registrar.add_readable(&socket, token)?;
        Ok(Self { socket, registrar: registrar.clone(), token, full: false })
    }

    /// Whether it waits for room.
    pub fn is_full(&self) -> bool {
        self.full
    }

    /// The socket has room again.
    pub fn has_room(&mut self) -> Result<(), Fault> {
        if self.full {
            self.full = false;
            self.watch()?;
        }
        Ok(())
    }

    /// Sends a request as it is in guest memory.
    pub fn send(&mut self, request: &Buffers) -> Result<Sent, Fault> {
        if self.full {
            return Ok(Sent::Later);
        }
        loop {
            match request.send_to(&self.socket) {
                Ok(_) => return Ok(Sent::Yes),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return self.not_sent(error),
            }
        }
    }

    /// What an error of the socket's means for a request.
    pub(super) fn not_sent(&mut self, error: io::Error) -> Result<Sent, Fault> {
        match Errno::from_io_error(&error) {
            Some(Errno::AGAIN) => {
                self.full = true;
                self.watch()?;
                Ok(Sent::Later)
            }
            Some(errno @ (Errno::NOBUFS | Errno::NOMEM)) => Ok(Sent::NoMemory(errno.raw_os_error())),
            Some(errno @ Errno::MSGSIZE) => Ok(Sent::Refused(errno.raw_os_error())),
            Some(Errno::PIPE) => Err(Fault::Closed),
            _ => Err(Fault::Socket(error)),
        }
    }

    /// The header of the next reply, which stays where it is; `None` if there is no reply yet.
    pub fn peek(&self) -> Result<Option<Reply>, Fault> {
        let mut header = [0; REPLY_HEADER];
        // TRUNC: what comes back is the packet's length, not what of it was copied.
        let flags = RecvFlags::PEEK | RecvFlags::TRUNC | RecvFlags::DONTWAIT;
        let mut was_reset = false;
        let length = loop {
            // There is no room for descriptors, so that the kernel closes those that come along.
            let mut control = RecvAncillaryBuffer::default();
            match rustix::net::recvmsg(&self.socket, &mut [IoSliceMut::new(&mut header)], &mut control, flags)
            {
                Ok(received) => break received.bytes,
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::INTR) => {}
                // A server that ended without reading everything is reported once, ahead of its last replies.
                Err(Errno::CONNRESET) if !was_reset => was_reset = true,
                Err(errno) => return Err(Fault::Socket(errno.into())),
            }
        };
        if length == 0 {
            return Err(Fault::Closed);
        }
        if length < REPLY_HEADER {
            return Err(Fault::Short(length));
        }
        let reply = Reply::parse(&header);
        if usize::try_from(reply.len) != Ok(length) {
            return Err(Fault::Length { length, said: reply.len });
        }
        if !reply.has_possible_error() {
            return Err(Fault::NoError(reply.error));
        }
        Ok(Some(reply))
    }

    /// Moves the next reply, which was seen by [`Connection::peek`], to guest memory.
    pub fn receive(&self, room: &Buffers, reply: Reply) -> Result<(), Fault> {
        loop {
            match room.receive_from(&self.socket) {
                Ok(length) if u32::try_from(length) == Ok(reply.len) => return Ok(()),
                Ok(length) => return Err(Fault::Length { length, said: reply.len }),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Fault::Socket(error)),
            }
        }
    }

    fn watch(&self) -> Result<(), Fault> {
        self.registrar.change(&self.socket, self.token, true, self.full).map_err(Fault::Socket)
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // Closing does it only if nobody else has the socket open.
        self.registrar.remove(&self.socket);
    }
}
