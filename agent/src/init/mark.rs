//! Marks the agent leaves for the machine: a byte written to an I/O port.

use crate::log;

/// The port the machine watches.
const MARK_PORT: u16 = 0x600;

/// What the agent can tell the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Mark {
    /// The agent serves requests.
    Ready = 1,
    /// Power the machine off now.
    PowerOff = 2,
}

/// Writes a mark. Does nothing where ports cannot be written.
pub fn write(mark: Mark) {
    if let Err(error) = out(mark as u8) {
        log!("cannot write mark {mark:?} to port {MARK_PORT:#x}: {error}");
    }
}

#[cfg(target_arch = "x86_64")]
fn out(value: u8) -> std::io::Result<()> {
    // SAFETY: asks for the one port the machine reserves for marks; no memory is involved.
    if unsafe { libc::ioperm(MARK_PORT.into(), 1, 1) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: the port was just granted; a write to it has no effect on this process's memory.
    unsafe {
        std::arch::asm!("out dx, al", in("dx") MARK_PORT, in("al") value, options(nomem, nostack, preserves_flags));
    }
    // A process that may use ports makes the kernel copy a bitmap at every switch to it: give the port back.
    // SAFETY: as above.
    unsafe { libc::ioperm(MARK_PORT.into(), 1, 0) };
    Ok(())
}

#[cfg(not(target_arch = "x86_64"))]
fn out(_value: u8) -> std::io::Result<()> {
    Err(std::io::ErrorKind::Unsupported.into())
}
