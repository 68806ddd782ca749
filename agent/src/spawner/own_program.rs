//! The program of the spawner and of all that it makes, until they run another: the agent's, executed once more.
//!
//! A container may see such a process (`/proc/PID/exe`) and follow its program. That is one file on a read-only mount of its own
//! then: nothing can be written through it, and no path leads on from it.

use std::ffi::{CStr, OsStr};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags, open};
use rustix::io::{FdFlags, dup2, fcntl_setfd};
use rustix::mount::{OpenTreeFlags, open_tree};

use crate::mount_attributes::make_readonly;

/// By what name the program is called to be the spawner.
const NAME: &CStr = c"spawner";
/// The descriptor of the spawner's socket.
const SOCKET: i32 = 3;

/// Executes the calling process's program as the spawner on `socket`; returns why that failed.
pub(super) fn execute(socket: &OwnedFd) -> io::Error {
    match prepare(socket) {
        Ok(program) => {
            let (arguments, environment) =
                ([NAME.as_ptr(), std::ptr::null()], [std::ptr::null::<libc::c_char>()]);
            // SAFETY: the path is NUL-terminated, the arrays are null-terminated, and all live through the call.
            unsafe {
                libc::syscall(
                    libc::SYS_execveat,
                    program.as_raw_fd(),
                    c"".as_ptr(),
                    arguments.as_ptr(),
                    environment.as_ptr(),
                    libc::AT_EMPTY_PATH,
                );
            }
            io::Error::last_os_error()
        }
        Err(error) => error,
    }
}

/// Puts the socket in its place and opens the program.
fn prepare(socket: &OwnedFd) -> io::Result<OwnedFd> {
    let program = open("/proc/self/exe", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let mut program = open_tree(&program, c"", flags)?;
    make_readonly(&program)?;
    if program.as_raw_fd() == SOCKET {
        program = program.try_clone()?;
    }
    if socket.as_raw_fd() == SOCKET {
        fcntl_setfd(socket, FdFlags::empty())?;
    } else {
        // SAFETY: whatever had the number is not used any more: this process has nothing left to do but execute a program.
        let mut place = std::mem::ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(SOCKET) });
        dup2(socket, &mut place)?;
    }
    Ok(program)
}

/// The spawner's socket, when this process was executed to be the spawner.
#[must_use]
pub(super) fn socket() -> Option<OwnedFd> {
    let called = std::env::args_os().next()?;
    if called != OsStr::new("spawner") {
        return None;
    }
    // SAFETY: whoever executes the spawner gives it this descriptor, and nothing else in this process has it.
    let socket = unsafe { OwnedFd::from_raw_fd(SOCKET) };
    fcntl_setfd(&socket, FdFlags::CLOEXEC).ok().map(|()| socket)
}
