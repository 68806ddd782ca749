//! How a machine's process comes to be: by clone3(2), in a process namespace of its own and, on cgroup v2, in the pod's
//! cgroup from its first instruction on. So nothing that it uses is charged to anyone else, and it need not be
//! moved later, for which the kernel has all processes of the node wait.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::{self, null_mut};

use ravelin_vmm::control::CONTROL_FD;
use rustix::io::{fcntl_dupfd_cloexec, retry_on_intr};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{WaitId, WaitIdOptions, waitid};

/// What the process holds when it begins; nothing else of the shim's.
pub(super) struct Inheritance {
    /// Its standard input and output.
    pub null: OwnedFd,
    /// Its standard error.
    pub log: OwnedFd,
    /// Its descriptor [`CONTROL_FD`].
    pub control: OwnedFd,
}

/// A process that has begun to run its program. Killed when dropped before anyone keeps it: nobody would ever end it.
pub(super) struct Born {
    pub pid: u32,
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
            super::kill(self.pidfd.as_fd());
            let _ = waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED);
        }
    }
}

/// Runs a program with its arguments, the first of which is its path. If `cgroup`, a directory of cgroup v2, is given, the
/// process is in it. Waits until the program runs, as long as the disk takes on which it is.
///
/// # Errors
/// The kernel's refusal to make the process or to run the program.
pub(super) fn spawn(
    program: &[CString],
    inheritance: &Inheritance,
    cgroup: Option<BorrowedFd<'_>>,
) -> io::Result<Born> {
    let (heard, said) = pipe_with(PipeFlags::CLOEXEC)?;
    // Above all numbers that the child gives them, so that none takes the place of one that is still to be moved.
    let above = |fd: &OwnedFd| fcntl_dupfd_cloexec(fd, CONTROL_FD + 1);
    let (null, log, control) =
        (above(&inheritance.null)?, above(&inheritance.log)?, above(&inheritance.control)?);
    let failure = above(&said)?;
    drop(said);
    let mut arguments: Vec<_> = program.iter().map(|argument| argument.as_ptr()).collect();
    arguments.push(ptr::null());
    let child = Child {
        arguments: &arguments,
        null: null.as_raw_fd(),
        log: log.as_raw_fd(),
        control: control.as_raw_fd(),
        failure: failure.as_raw_fd(),
    };
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
    null: RawFd,
    log: RawFd,
    control: RawFd,
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
/// the shim, which ends its machine in order.
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
        let moves = [(child.null, 0), (child.null, 1), (child.log, 2), (child.control, CONTROL_FD)];
        if moves.iter().all(|(from, to)| libc::dup2(*from, *to) >= 0) && libc::chdir(c"/".as_ptr()) == 0 {
            // Whatever a library may have left open.
            libc::syscall(
                libc::SYS_close_range,
                (CONTROL_FD + 1).unsigned_abs(),
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
