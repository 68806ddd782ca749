//! The signal that takes a processor out of the guest.

use std::cell::Cell;
use std::os::unix::thread::JoinHandleExt;
use std::ptr::null_mut;
use std::thread::JoinHandle;

use kvm_ioctls::VcpuFd;

thread_local! {
    /// Address of the `immediate_exit` flag of this thread's processor.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(null_mut()) };
}

fn signal() -> libc::c_int {
    libc::SIGRTMIN()
}

/// Makes the signal that takes a processor out of the guest do so even if it arrives just before it enters it.
pub(super) fn install_handler() -> std::io::Result<()> {
    extern "C" fn handler(_signal: libc::c_int) {
        let flag = IMMEDIATE_EXIT.get();
        if !flag.is_null() {
            // SAFETY: the pointer leads into this thread's mapped kvm_run page; `forget` clears it before that is unmapped.
            unsafe { flag.write_volatile(1) };
        }
    }
    // SAFETY: an all-zero sigaction is valid; the handler only does what is allowed in one: it reads a
    // const-initialized thread-local without a destructor and writes one byte.
    let result = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as extern "C" fn(libc::c_int) as libc::sighandler_t;
        libc::sigaction(signal(), &raw const action, null_mut())
    };
    if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}

/// Lets the signal reach this thread's processor.
pub(super) fn remember(vcpu: &mut VcpuFd) {
    IMMEDIATE_EXIT.set(&raw mut vcpu.get_kvm_run().immediate_exit);
}

/// Forgets this thread's processor. Must come before the processor goes.
pub(super) fn forget() {
    IMMEDIATE_EXIT.set(null_mut());
}

/// Takes the processor of `thread` out of the guest, or keeps it from entering the next time.
pub(super) fn kick<T>(thread: &JoinHandle<T>) {
    // SAFETY: the thread has not been joined, so its id is valid; the signal has a handler.
    unsafe { libc::pthread_kill(thread.as_pthread_t(), signal()) };
}
