//! Terminals: an exec's, and a container's, which libcontainer makes and a helper process readies in
//! time.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Gid, OFlags, Uid, fchown, fstat, fstatfs, makedev};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use super::message::{Console, Reply, send};
use crate::opening::{self, Proc};
use crate::paths;

/// Waits for the terminal while libcontainer builds: it sets size and owner before the program runs, and sends the
/// master side to the agent.
#[derive(Debug)]
pub(super) struct Keeper {
    helper: Option<Pid>,
    path: Option<PathBuf>,
    gate: Option<OwnedFd>,
}

impl Keeper {
    /// Starts the helper if a terminal is wanted.
    pub(super) fn start(console: Option<Console>, agent: BorrowedFd<'_>) -> io::Result<Self> {
        let Some(console) = console else {
            return Ok(Self { helper: None, path: None, gate: None });
        };
        let path = PathBuf::from(paths::RUN).join(format!("console-{}", std::process::id()));
        let listener = UnixListener::bind(&path)?;
        let (gate, open) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        // SAFETY: this process has one thread, so the child may go on as an ordinary process.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()),
            0 => {
                drop(gate);
                if let Err(error) = take(&listener, console, agent) {
                    crate::log!("cannot take over a terminal: {error}");
                }
                drop(open);
                std::process::exit(0)
            }
            pid => Ok(Self { helper: Pid::from_raw(pid), path: Some(path), gate: Some(gate) }),
        }
    }

    /// The console socket for libcontainer.
    pub(super) fn path(&self) -> Option<PathBuf> {
        self.path.clone()
    }

    /// Becomes readable (at its end) when the terminal is ready.
    pub(super) fn gate(&self) -> Option<OwnedFd> {
        self.gate.as_ref().and_then(|gate| gate.try_clone().ok())
    }

    /// Ends the helper, which has nothing left to do once libcontainer has returned.
    pub(super) fn finish(self) {
        if let Some(path) = &self.path {
            let _ = std::fs::remove_file(path);
        }
        let Some(pid) = self.helper else { return };
        // It has sent the terminal, or never will: the program runs only after the gate.
        if matches!(waitpid(Some(pid), WaitOptions::NOHANG), Ok(None)) {
            let _ = kill_process(pid, Signal::KILL);
            let _ = waitpid(Some(pid), WaitOptions::empty());
        }
    }
}

/// The helper's one job.
fn take(listener: &UnixListener, console: Console, agent: BorrowedFd<'_>) -> io::Result<()> {
    let (stream, _) = listener.accept()?;
    let master = receive_fd(&stream)?;
    ready(&master, console)?;
    send(agent, &Reply::Console, &[master.as_fd()]).map_err(io::Error::other)
}

/// Gives a terminal its owner and size; returns the side that the process gets.
fn ready(master: &OwnedFd, console: Console) -> io::Result<OwnedFd> {
    let peer = ioctl_tiocgptpeer(master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    fchown(&peer, Some(Uid::from_raw(console.uid)), None::<Gid>)?;
    if let Some((columns, rows)) = console.size {
        tcsetwinsize(master, Winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 })?;
    }
    Ok(peer)
}

/// Makes a terminal of the container with this root directory; returns the master side and the one that the process gets.
pub(super) fn make(console: Console, proc: &Proc, root: impl AsFd) -> io::Result<(OwnedFd, OwnedFd)> {
    let found = opening::find(root, Path::new("dev/ptmx"))?;
    check_ptmx(&found)?;
    let master = proc.reopen(&found, OFlags::RDWR | OFlags::NOCTTY)?;
    unlockpt(&master)?;
    let peer = ready(&master, console)?;
    Ok((master, peer))
}

/// What a container has at `/dev/ptmx` is its own affair; taken for a terminal is only what the kernel has there.
fn check_ptmx(found: &OwnedFd) -> io::Result<()> {
    /// `DEVPTS_SUPER_MAGIC` of linux/magic.h.
    const DEVPTS: i64 = 0x1cd1;
    let (file, system) = (fstat(found)?, fstatfs(found)?);
    let is_ptmx = FileType::from_raw_mode(file.st_mode).is_char_device() && file.st_rdev == makedev(5, 2);
    if system.f_type != DEVPTS || !is_ptmx {
        return Err(io::Error::other("/dev/ptmx does not lead to the container's terminals"));
    }
    Ok(())
}

fn receive_fd(stream: &UnixStream) -> io::Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut name = [0; 256];
    recvmsg(stream, &mut [IoSliceMut::new(&mut name)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(mut rights) = message
            && let Some(fd) = rights.next()
        {
            return Ok(fd);
        }
    }
    Err(io::ErrorKind::UnexpectedEof.into())
}
