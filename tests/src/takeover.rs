//! A thread of another process that was taken over: it makes the system calls that it is told to.

use std::io;
use std::mem::zeroed;

/// The instruction `syscall`.
const SYSCALL: [u8; 2] = [0x0f, 0x05];
/// Bytes that are written into a process at once.
const WORD: usize = size_of::<usize>();

/// Has a thread that waits in a system call make the call `number`, without arguments, instead. Nobody holds it any more
/// when this returns: what comes of it, comes to the thread.
///
/// # Panics
/// When the thread cannot be held, or does not wait in a system call.
pub fn make_call(thread: i32, number: i64) {
    let mut registers = hold(thread);
    registers.rip -= SYSCALL.len() as u64;
    registers.rax = number.cast_unsigned();
    // What it was in is not begun anew.
    registers.orig_rax = u64::MAX;
    // SAFETY: the requests take a number and the registers, which outlive the calls.
    unsafe {
        ptrace(libc::PTRACE_SETREGS, thread, (&raw mut registers) as usize);
        ptrace(libc::PTRACE_DETACH, thread, 0);
    }
}

/// Has a thread that waits in a system call open a file with these flags of open(2), and close it again. The call in which
/// it waited is interrupted.
///
/// # Errors
/// What the kernel told the thread.
///
/// # Panics
/// When the thread cannot be held, or does not wait in a system call.
pub fn open(thread: i32, path: &str, flags: i32) -> io::Result<()> {
    let before = hold(thread);
    // Below what the thread, and code that does not move the stack's end, may use.
    let text = before.rsp - 0x1000;
    for (at, word) in (text..).step_by(WORD).zip([path.as_bytes(), b"\0"].concat().chunks(WORD)) {
        let mut bytes = [0; WORD];
        bytes[..word.len()].copy_from_slice(word);
        // SAFETY: the request takes a number, and writes to the other process.
        unsafe { ptrace_at(libc::PTRACE_POKEDATA, thread, at, usize::from_le_bytes(bytes)) };
    }
    let flags = flags | libc::O_CLOEXEC;
    let opened = finish_call(
        thread,
        &before,
        libc::SYS_openat,
        [libc::AT_FDCWD as u64, text, flags.unsigned_abs().into()],
    );
    if opened >= 0 {
        finish_call(thread, &before, libc::SYS_close, [opened.cast_unsigned(), 0, 0]);
    }
    let mut after = before;
    after.rax = (-i64::from(libc::EINTR)).cast_unsigned();
    after.orig_rax = u64::MAX;
    // SAFETY: as above.
    unsafe {
        ptrace(libc::PTRACE_SETREGS, thread, (&raw mut after) as usize);
        ptrace(libc::PTRACE_DETACH, thread, 0);
    }
    match i32::try_from(opened) {
        Ok(failed @ ..0) => Err(io::Error::from_raw_os_error(-failed)),
        _ => Ok(()),
    }
}

/// Has a thread that is held make a call; gives what comes of it.
fn finish_call(thread: i32, before: &libc::user_regs_struct, number: i64, arguments: [u64; 3]) -> i64 {
    let mut registers = *before;
    registers.rip -= SYSCALL.len() as u64;
    registers.rax = number.cast_unsigned();
    registers.orig_rax = u64::MAX;
    [registers.rdi, registers.rsi, registers.rdx] = arguments;
    // SAFETY: the requests take numbers and the registers, which outlive the calls.
    unsafe {
        ptrace(libc::PTRACE_SETREGS, thread, (&raw mut registers) as usize);
        // To its entry, and to its end.
        for _ in 0..2 {
            ptrace(libc::PTRACE_SYSCALL, thread, 0);
            wait_for_stop(thread);
        }
        ptrace(libc::PTRACE_GETREGS, thread, (&raw mut registers) as usize);
    }
    registers.rax.cast_signed()
}

/// Holds a thread that waits in a system call; gives its registers, which are behind the call.
fn hold(thread: i32) -> libc::user_regs_struct {
    // SAFETY: user_regs_struct is numbers; the requests take numbers and the registers, which outlive the calls.
    unsafe {
        ptrace(libc::PTRACE_SEIZE, thread, 0);
        ptrace(libc::PTRACE_INTERRUPT, thread, 0);
        wait_for_stop(thread);
        let mut registers: libc::user_regs_struct = zeroed();
        ptrace(libc::PTRACE_GETREGS, thread, (&raw mut registers) as usize);
        let instruction = registers.rip - SYSCALL.len() as u64;
        let bytes = libc::ptrace(libc::PTRACE_PEEKTEXT, thread, instruction, 0).to_le_bytes();
        assert_eq!(bytes[..2], SYSCALL, "the thread does not wait in a system call");
        registers
    }
}

fn wait_for_stop(thread: i32) {
    let mut status = 0;
    // SAFETY: waitpid writes to `status` only.
    let waited = unsafe { libc::waitpid(thread, &raw mut status, libc::__WALL) };
    assert_eq!(waited, thread, "{}", io::Error::last_os_error());
    assert!(libc::WIFSTOPPED(status), "the thread ended: {status:#x}");
}

/// # Safety
/// As of ptrace(2): `data` is what the request takes.
unsafe fn ptrace(request: u32, thread: i32, data: usize) {
    // SAFETY: the caller vouches for the request's argument.
    unsafe { ptrace_at(request, thread, 0, data) }
}

/// # Safety
/// As of ptrace(2): `address` and `data` are what the request takes.
unsafe fn ptrace_at(request: u32, thread: i32, address: u64, data: usize) {
    // SAFETY: the caller vouches for the request's arguments.
    let result = unsafe { libc::ptrace(request, thread, address, data) };
    assert_eq!(result, 0, "ptrace request {request:#x}: {}", io::Error::last_os_error());
}
