//! How the shim hands a volume over: packets on a `SOCK_SEQPACKET` Unix socket, one request, one answer.
//!
//! A request is four numbers of 32 bits, little-endian: the packet's length in bytes (16), what is asked for ([`ADD_VOLUME`]), the
//! volume's number, and flags ([`READ_ONLY`]); with it comes one descriptor, the volume's directory. An answer is the packet's
//! length and 0, or 1 with a sentence behind it in UTF-8.
//!
//! The server trusts the shim. The shim takes what the server says for a guest's words.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::thread::sleep;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recv, recvmsg, send, sendmsg, socketpair,
};

use crate::server::Server;

/// Descriptor number of the control socket in a freshly spawned `ravelin-fs`.
pub const CONTROL_FD: i32 = 3;
/// Descriptor number of the socket that FUSE requests come from.
pub const REQUESTS_FD: i32 = 4;

/// A directory becomes a volume.
pub const ADD_VOLUME: u32 = 1;
/// Nothing may be changed in the volume.
pub const READ_ONLY: u32 = 1;

const REQUEST: usize = 16;
const ANSWER: usize = 8;
/// Longest answer.
const MAX_ANSWER: usize = 1024;

/// How long requests of a machine that has hung up are worked on.
const LAST_REQUESTS: Duration = Duration::from_secs(1);

/// Bytes that a socket for requests holds back for its reader. The kernel counts its own bookkeeping too, and doubles it.
const SOCKET_BUFFER: libc::c_int = 2 << 20;

/// Makes the two ends for requests, one for the machine's file device and one for the server, both close-on-exec. They carry messages
/// of full length if this process has `CAP_NET_ADMIN`, and otherwise what `net.core.wmem_max` allows: the server and the guest
/// agree on that.
///
/// # Errors
/// When the process has no descriptors left.
pub fn request_sockets() -> io::Result<(OwnedFd, OwnedFd)> {
    let (one, other) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    let bytes = SOCKET_BUFFER;
    let length = libc::socklen_t::try_from(size_of_val(&bytes)).unwrap_or(0);
    for socket in [&one, &other] {
        for option in [libc::SO_SNDBUFFORCE, libc::SO_SNDBUF] {
            let (fd, value) = (socket.as_raw_fd(), (&raw const bytes).cast());
            // SAFETY: the option takes an int, which lives here.
            let result = unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, option, value, length) };
            if result == 0 {
                break;
            }
        }
    }
    Ok((one, other))
}

/// Hands a directory over, at the shim's end: it becomes the folder `number` of what the guest mounts.
///
/// # Errors
/// As [`order_volume`] and [`answer`].
pub fn add_volume(control: impl AsFd, number: u32, read_only: bool, directory: impl AsFd) -> io::Result<()> {
    order_volume(&control, number, read_only, directory)?;
    answer(control)
}

/// The first half of [`add_volume`]: sends the order.
///
/// # Errors
/// When the socket fails, or its write timeout has passed.
pub fn order_volume(
    control: impl AsFd,
    number: u32,
    read_only: bool,
    directory: impl AsFd,
) -> io::Result<()> {
    let numbers = [REQUEST as u32, ADD_VOLUME, number, if read_only { READ_ONLY } else { 0 }];
    let request = numbers.map(u32::to_le_bytes).concat();
    let fds = [directory.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut rights = SendAncillaryBuffer::new(&mut space);
    rights.push(SendAncillaryMessage::ScmRights(&fds));
    retry_on_intr(|| sendmsg(&control, &[IoSlice::new(&request)], &mut rights, SendFlags::NOSIGNAL))?;
    Ok(())
}

/// The second half of [`add_volume`]: takes the answer to the oldest order that has none yet. One order that was given up leaves its
/// answer to be taken before that of the next.
///
/// # Errors
/// When the socket fails, or its read timeout has passed; [`io::ErrorKind::Other`] with the server's sentence when it refuses.
pub fn answer(control: impl AsFd) -> io::Result<()> {
    let mut bytes = [0; MAX_ANSWER];
    let (_, length) = retry_on_intr(|| recv(&control, &mut bytes, RecvFlags::empty()))?;
    let wrong = || io::Error::new(io::ErrorKind::InvalidData, "the file server gave no proper answer");
    let (head, text) =
        bytes.get(..length).and_then(|answer| answer.split_at_checked(ANSWER)).ok_or_else(wrong)?;
    match (number_at(head, 0), number_at(head, 4)) {
        (Some(said), Some(0)) if usize::try_from(said) == Ok(length) => Ok(()),
        (Some(said), Some(1)) if usize::try_from(said) == Ok(length) => {
            Err(io::Error::other(String::from_utf8_lossy(text).into_owned()))
        }
        _ => Err(wrong()),
    }
}

/// Serves the shim until it hangs up, or the machine has, whose end of `requests` that is.
///
/// # Errors
/// When a socket fails.
pub fn serve(control: impl AsFd, requests: impl AsFd, server: &Server) -> io::Result<()> {
    while wait(&control, &requests)?
        && let Some(result) = receive(&control)?
    {
        let result = result.and_then(|order| {
            let Order { number, read_only, directory } = order;
            server.add_volume(number, read_only, directory).map_err(|error| error.to_string())
        });
        let (code, text) = match &result {
            Ok(()) => (0_u32, ""),
            Err(text) => (1, text.as_str()),
        };
        let text = text.as_bytes().get(..text.len().min(MAX_ANSWER - ANSWER)).unwrap_or_default();
        let length = u32::try_from(ANSWER + text.len()).unwrap_or(0);
        let answer = [&length.to_le_bytes()[..], &code.to_le_bytes(), text].concat();
        match retry_on_intr(|| send(&control, &answer, SendFlags::NOSIGNAL)) {
            Ok(_) => {}
            Err(Errno::PIPE | Errno::CONNRESET) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Waits for an order, or the shim's end; false when the machine has hung up.
fn wait(control: &impl AsFd, requests: &impl AsFd) -> io::Result<bool> {
    let mut sockets = [PollFd::new(control, PollFlags::IN), PollFd::new(requests, PollFlags::empty())];
    retry_on_intr(|| poll(&mut sockets, None))?;
    let [_, requests] = sockets;
    if requests.revents().is_empty() {
        return Ok(true);
    }
    // The threads that answer end the process when they have done what was asked for. But all of them may wait for a file system
    // that does not answer.
    sleep(LAST_REQUESTS);
    Ok(false)
}

/// To add a volume.
#[derive(Debug)]
struct Order {
    number: u32,
    read_only: bool,
    directory: OwnedFd,
}

/// The next order, or what is wrong with it; `None` when the other end is closed.
fn receive(control: &impl AsFd) -> io::Result<Option<Result<Order, String>>> {
    // One byte and one descriptor more than there may be show that there are too many.
    let mut bytes = [0; REQUEST + 1];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut rights = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        match recvmsg(control, &mut [IoSliceMut::new(&mut bytes)], &mut rights, RecvFlags::CMSG_CLOEXEC) {
            Ok(received) => break received,
            Err(Errno::INTR) => {}
            Err(Errno::CONNRESET) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        }
    };
    let mut fds: Vec<OwnedFd> = Vec::new();
    for message in rights.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    if received.bytes == 0 {
        return Ok(None);
    }
    let whole = received.bytes == REQUEST && number_at(&bytes, 0) == Some(REQUEST as u32);
    let (kind, number, flags) = (number_at(&bytes, 4), number_at(&bytes, 8), number_at(&bytes, 12));
    let (true, Some(ADD_VOLUME), Some(number), Some(flags @ (0 | READ_ONLY))) = (whole, kind, number, flags)
    else {
        return Ok(Some(Err("the file server does not know such a request".into())));
    };
    let cut = received.flags.contains(ReturnFlags::CTRUNC);
    let directory = match <[OwnedFd; 1]>::try_from(fds) {
        Ok([directory]) if !cut => directory,
        _ => return Ok(Some(Err(format!("volume {number} needs one descriptor")))),
    };
    Ok(Some(Ok(Order { number, read_only: flags == READ_ONLY, directory })))
}

fn number_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
}
