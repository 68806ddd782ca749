//! How the processes of a pod, its machine and its file server, come to be: by clone3(2), in a process namespace of their own and, on
//! cgroup v2, in the pod's cgroup from their first instruction on. So nothing that they use is charged to anyone else, and they need
//! not be moved later, for which the kernel has all processes of the node wait.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::{self, null_mut};

use rustix::io::{fcntl_dupfd_cloexec, retry_on_intr};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Signal, WaitId, WaitIdOptions, WaitIdStatus, pidfd_send_signal, waitid};
use tokio::io::unix::AsyncFd;

/// The first socket's number in the process.
const FIRST_SOCKET: RawFd = 3;
const _: () = assert!(ravelin_vmm::control::CONTROL_FD == FIRST_SOCKET);
const _: () = assert!(ravelin_fs::control::CONTROL_FD == FIRST_SOCKET);
const _: () = assert!(ravelin_fs::control::REQUESTS_FD == FIRST_SOCKET + 1);

/// What the process holds when it begins; nothing else of the shim's.
#[derive(Debug)]
pub struct Inheritance {
    /// Its standard input and output.
    pub null: OwnedFd,
    /// Its standard error.
    pub log: OwnedFd,
    /// Its sockets, from the descriptor 3 on.
    pub sockets: Vec<OwnedFd>,
}

/// A process that has begun to run its program. Killed when dropped before anyone keeps it: nobody would ever end it.
#[derive(Debug)]
pub struct Born {
    /// Its id.
    pub pid: u32,
    /// Its descriptor.
    pub pidfd: OwnedFd,
    kept: bool,
}

impl Born {
    /// Leaves its end to who has its descriptor.
    ///
    /// # Errors
    /// When there are no more descriptors; the process is killed then.
    pub fn keep(mut self) -> io::Result<OwnedFd> {
        let pidfd = self.pidfd.try_clone()?;
        self.kept = true;
        Ok(pidfd)
    }
}

impl Drop for Born {
    fn drop(&mut self) {
        if !self.kept {
            kill(self.pidfd.as_fd());
            let _ = waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED);
        }
    }
}

/// Kills a process; one that has ended already stays as it is.
pub fn kill(pidfd: BorrowedFd<'_>) {
    let _ = pidfd_send_signal(pidfd, Signal::KILL);
}

/// Waits for a child's end, and takes what it leaves.
///
/// # Errors
/// When it cannot be waited for.
pub async fn reap(child: &AsyncFd<OwnedFd>) -> io::Result<WaitIdStatus> {
    loop {
        let mut ready = child.readable().await?;
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        if let Some(status) = waitid(WaitId::PidFd(child.get_ref().as_fd()), options)? {
            return Ok(status);
        }
        ready.clear_ready();
    }
}

/// Runs a program with its arguments, the first of which is its path. If `cgroup`, a directory of cgroup v2, is given, the
/// process is in it. Waits until the program runs, as long as the disk takes on which it is.
///
/// # Errors
/// The kernel's refusal to make the process or to run the program.
pub fn spawn(
    program: &[CString],
    inheritance: &Inheritance,
    cgroup: Option<BorrowedFd<'_>>,
) -> io::Result<Born> {
    let (heard, said) = pipe_with(PipeFlags::CLOEXEC)?;
    // Above all numbers that the child gives them, so that none takes the place of one that is still to be moved.
    let end = FIRST_SOCKET + RawFd::try_from(inheritance.sockets.len()).map_err(io::Error::other)?;
    let above = |fd: &OwnedFd| fcntl_dupfd_cloexec(fd, end);
    let (null, log) = (above(&inheritance.null)?, above(&inheritance.log)?);
    let sockets: Vec<OwnedFd> = inheritance.sockets.iter().map(above).collect::<Result<_, _>>()?;
    let moves: Vec<(RawFd, RawFd)> = [&null, &null, &log]
        .into_iter()
        .chain(&sockets)
        .zip(0..)
        .map(|(fd, number)| (fd.as_raw_fd(), number))
        .collect();
    let failure = above(&said)?;
    drop(said);
    let mut arguments: Vec<_> = program.iter().map(|argument| argument.as_ptr()).collect();
    arguments.push(ptr::null());
    let child = Child { arguments: &arguments, moves: &moves, end, failure: failure.as_raw_fd() };
    let born = clone(&child, cgroup)?;
    drop(failure);
    // Ends without a word when the program runs.
    let mut errno = [0; 4];
    match retry_on_intr(|| rustix::io::read(&heard, &mut errno)) {
        Ok(0) => Ok(born),
        outcome => {
            outcome?;
            Err(io::Error::from_raw_os_error(i32::from_ne_bytes(errno)))
        }
    }
}

/// All that the child needs, ready to be used without allocating.
struct Child<'a> {
    arguments: &'a [*const libc::c_char],
    /// Descriptors, and the numbers that they get.
    moves: &'a [(RawFd, RawFd)],
    /// The first number that is none of them.
    end: RawFd,
    failure: RawFd,
}

fn clone(child: &Child<'_>, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Born> {
    let mut pidfd: RawFd = -1;
    // SAFETY: all-zero arguments are valid.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = (libc::CLONE_NEWPID | libc::CLONE_PIDFD).unsigned_abs().into();
    arguments.pidfd = (&raw mut pidfd) as u64;
    arguments.exit_signal = libc::SIGCHLD.unsigned_abs().into();
    if let Some(cgroup) = cgroup {
        arguments.flags |= INTO_CGROUP;
        arguments.cgroup = cgroup.as_raw_fd().unsigned_abs().into();
    }
    // SAFETY: the arguments live during the call and ask for a copy of the process, as fork does. The child runs only
    // `begin`, which keeps to what is allowed in the copy of a process with several threads.
    let result =
        unsafe { libc::syscall(libc::SYS_clone3, &raw mut arguments, size_of::<libc::clone_args>()) };
    match result {
        0 => begin(child),
        -1 => Err(io::Error::last_os_error()),
        pid => Ok(Born {
            pid: u32::try_from(pid).map_err(io::Error::other)?,
            // SAFETY: the kernel has opened the descriptor for this call, and nobody else knows it.
            pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) },
            kept: false,
        }),
    }
}

/// `CLONE_INTO_CGROUP` of <linux/sched.h>.
const INTO_CGROUP: u64 = 1 << 33;

/// The child, until its program runs. The signals of a node that goes down, SIGTERM to all processes at once, are left to
/// the shim, which ends its pod in order.
///
/// It may only make system calls: another thread may have held any lock when the process was copied.
fn begin(child: &Child<'_>) -> ! {
    let environment = [ptr::null::<libc::c_char>()];
    // SAFETY: the calls are async-signal-safe; descriptors are numbers, of which those that are not open make them fail;
    // the arguments' array ends with a null pointer and its strings, as the environment, outlive the call. To ignore a
    // signal, which lasts through execve, installs no handler.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, null_mut());
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
            libc::signal(signal, libc::SIG_IGN);
        }
        if child.moves.iter().all(|(from, to)| libc::dup2(*from, *to) >= 0) && libc::chdir(c"/".as_ptr()) == 0
        {
            // Whatever a library may have left open.
            libc::syscall(
                libc::SYS_close_range,
                child.end.unsigned_abs(),
                u32::MAX,
                libc::CLOSE_RANGE_CLOEXEC,
            );
            let program = child.arguments.first().copied().unwrap_or(ptr::null());
            libc::execve(program, child.arguments.as_ptr(), environment.as_ptr());
        }
        let errno = *libc::__errno_location();
        libc::write(child.failure, (&raw const errno).cast(), size_of_val(&errno));
        libc::_exit(127)
    }
}
