//! A thread of another process that was taken over: it makes the system call that it is told to.

use std::io;
use std::mem::zeroed;
use std::ptr::null_mut;

/// The instruction `syscall`.
const SYSCALL: [u8; 2] = [0x0f, 0x05];

/// Has a thread that waits in a system call make the call `number`, without arguments, instead. Nobody holds it any more
/// when this returns: what comes of it, comes to the thread.
///
/// # Panics
/// When the thread cannot be held, or does not wait in a system call.
pub fn make_call(thread: i32, number: i64) {
    // SAFETY: ptrace and waitpid with these arguments write to nothing but `status` and `registers`.
    unsafe {
        ptrace(libc::PTRACE_SEIZE, thread, 0);
        ptrace(libc::PTRACE_INTERRUPT, thread, 0);
        let mut status = 0;
        assert_eq!(
            libc::waitpid(thread, &raw mut status, libc::__WALL),
            thread,
            "{}",
            io::Error::last_os_error()
        );
        assert!(libc::WIFSTOPPED(status), "the thread ended: {status:#x}");
        let mut registers: libc::user_regs_struct = zeroed();
        ptrace(libc::PTRACE_GETREGS, thread, (&raw mut registers) as usize);
        let instruction = registers.rip - SYSCALL.len() as u64;
        let bytes = libc::ptrace(libc::PTRACE_PEEKTEXT, thread, instruction, 0).to_le_bytes();
        assert_eq!(bytes[..2], SYSCALL, "the thread does not wait in a system call");
        registers.rip = instruction;
        registers.rax = number.cast_unsigned();
        // What it was in is not begun anew.
        registers.orig_rax = u64::MAX;
        ptrace(libc::PTRACE_SETREGS, thread, (&raw mut registers) as usize);
        ptrace(libc::PTRACE_DETACH, thread, 0);
    }
}

/// # Safety
/// As of ptrace(2): `data` is what the request takes.
unsafe fn ptrace(request: u32, thread: i32, data: usize) {
    // SAFETY: the caller vouches for the request's argument.
    let result = unsafe { libc::ptrace(request, thread, null_mut::<libc::c_void>(), data) };
    assert_eq!(result, 0, "ptrace request {request:#x}: {}", io::Error::last_os_error());
}
