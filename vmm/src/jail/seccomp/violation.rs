//! What happens when a thread makes a call that is not allowed to it: the process says which, and ends.

use std::cell::Cell;
use std::fmt::{self, Write};
use std::io;
use std::ptr::null_mut;

use syscalls::Sysno;

use super::Thread;
use crate::control::ExitReason;

thread_local! {
    static THREAD: Cell<Thread> = const { Cell::new(Thread::Setup) };
}

/// Where the kernel puts the call's number into a `siginfo_t` of SIGSYS (sigaction(2)): behind the head of 16 bytes and the
/// call's address.
const CALL_OFFSET: usize = 24;

/// Remembers what thread this is.
pub(super) fn this_is(thread: Thread) {
    THREAD.set(thread);
}

/// Has SIGSYS, which the kernel sends instead of serving a forbidden call, handled. A thread that blocks it is killed by
/// the kernel, with the process.
pub(super) fn install_handler() -> io::Result<()> {
    extern "C" fn handler(_signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
        // SAFETY: the kernel passes a siginfo_t, which is 128 bytes long; the offset is a multiple of 4.
        let call = unsafe { info.cast::<u8>().add(CALL_OFFSET).cast::<i32>().read_volatile() };
        let mut line = Line { bytes: [0; 128], length: 0 };
        let name = usize::try_from(call).ok().and_then(Sysno::new).map_or("unknown", |call| call.name());
        let thread = THREAD.get().name();
        let _ = writeln!(
            line,
            "The machine's thread {thread} made the system call {call} ({name}), which it may not make"
        );
        // SAFETY: write and _exit are allowed in a handler; the bytes are this function's.
        unsafe {
            libc::write(libc::STDERR_FILENO, line.bytes.as_ptr().cast(), line.length);
            libc::_exit(ExitReason::Forbidden.code().into());
        }
    }
    // SAFETY: an all-zero sigaction is valid; the handler only does what is allowed in one: it reads a const-initialized
    // thread-local without a destructor, formats into its own stack without allocating, and makes the two calls above.
    let result = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = handler;
        action.sa_sigaction = handler as libc::sighandler_t;
        action.sa_flags = libc::SA_SIGINFO;
        libc::sigaction(libc::SIGSYS, &raw const action, null_mut())
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A line that is put together without allocating; what does not fit is left out.
struct Line {
    bytes: [u8; 128],
    length: usize,
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for (target, source) in self.bytes.iter_mut().skip(self.length).zip(text.bytes()) {
            *target = source;
            self.length += 1;
        }
        Ok(())
    }
}
