//! Threads that answer requests.

use std::io;
use std::os::fd::AsFd;
use std::thread::sleep;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{RecvFlags, SendFlags, recv, send};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use crate::message::{buffer, failure};
use crate::server::Server;

/// Threads that answer requests: as many requests may wait for a disk at a time.
pub const WORKERS: usize = 4;
/// How long a thread waits for the next request before it gives back what it holds for one.
const IDLE: Duration = Duration::from_secs(1);
/// How often, and after what time, a reply is sent again for which the node has no memory.
const SENDS: u32 = 50;
/// See [`SENDS`].
const SEND_PAUSE: Duration = Duration::from_millis(10);

/// Makes this thread one that answers requests: its working directory, `descriptors` (`/proc/self/fd`), and its mask for new
/// files are its own from now on.
///
/// # Errors
/// When the kernel refuses that.
pub fn prepare(descriptors: impl AsFd) -> io::Result<()> {
    // SAFETY: the flag parts no descriptors.
    unsafe { unshare_unsafe(UnshareFlags::FS) }?;
    rustix::process::fchdir(descriptors)?;
    rustix::process::umask(rustix::fs::Mode::empty());
    Ok(())
}

/// Makes a `SOCK_SEQPACKET` Unix socket ready for [`serve`]: threads wait in the kernel for what it brings, and say after
/// [`IDLE`] that nothing came.
///
/// # Errors
/// When it is no such socket.
pub fn make_ready(socket: impl AsFd) -> io::Result<()> {
    fcntl_setfl(&socket, fcntl_getfl(&socket)? - OFlags::NONBLOCK)?;
    Ok(set_socket_timeout(socket, Timeout::Recv, Some(IDLE))?)
}

/// Answers requests from `socket`, which was made ready and which several threads may share, until the other end is closed. A
/// message has at most `data` bytes of a file.
///
/// # Errors
/// When the socket fails.
pub fn serve(socket: impl AsFd, server: &Server, data: usize) -> io::Result<()> {
    let (mut request, mut reply) = (buffer(), buffer());
    loop {
        // The length is the packet's, also of one that is too long; that is not as long as it says then.
        let length = match recv(&socket, &mut *request, RecvFlags::TRUNC) {
            Ok((_, 0)) | Err(Errno::CONNRESET) => return Ok(()),
            Ok((_, length)) => length,
            Err(Errno::INTR) => continue,
            Err(Errno::AGAIN) => {
                // The memory of long messages is given back while there are none.
                (request, reply) = (buffer(), buffer());
                retry_on_intr(|| poll(&mut [PollFd::new(&socket, PollFlags::IN)], None))?;
                continue;
            }
            Err(errno) => return Err(errno.into()),
        };
        let packet = request.get(..length.min(request.len())).unwrap_or_default();
        if let Some(answer) = server.answer(packet, &mut reply, data) {
            match send_reply(&socket, answer) {
                Ok(()) => {}
                Err(Errno::PIPE | Errno::CONNRESET) => return Ok(()),
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

/// Sends a reply, or if the node cannot carry that, its failure.
fn send_reply(socket: &impl AsFd, reply: &[u8]) -> Result<(), Errno> {
    let mut result = retry_on_intr(|| send(socket, reply, SendFlags::NOSIGNAL));
    for _ in 0..SENDS {
        // A long packet needs memory in one piece, which the kernel makes when it is asked again.
        if !matches!(result, Err(Errno::NOBUFS | Errno::NOMEM)) {
            break;
        }
        sleep(SEND_PAUSE);
        result = retry_on_intr(|| send(socket, reply, SendFlags::NOSIGNAL));
    }
    match result {
        Err(errno @ (Errno::NOBUFS | Errno::NOMEM | Errno::MSGSIZE)) => {
            let failure = failure(reply, errno);
            retry_on_intr(|| send(socket, &failure, SendFlags::NOSIGNAL)).map(drop)
        }
        result => result.map(drop),
    }
}
