//! The agent's own standard descriptors.

use rustix::fs::{Mode, OFlags};

/// Points descriptor 0 at `/dev/null`, 1 and 2 at the console if there is one.
///
/// The kernel leaves init without any of the three when the machine has no console, and the next files opened
/// would take their place.
pub(super) fn open() {
    let dup = |path, flags, targets: &[i32]| -> rustix::io::Result<()> {
        let file = open_file(path, flags)?;
        for target in targets {
            // SAFETY: dup2 onto 0, 1 or 2, which no Rust object in this process owns.
            let _ = unsafe { libc::dup2(std::os::fd::AsRawFd::as_raw_fd(&file), *target) };
        }
        // The opened descriptor may itself be one of the three: it must then stay open.
        if std::os::fd::AsRawFd::as_raw_fd(&file) <= 2 {
            std::mem::forget(file);
        }
        Ok(())
    };
    let _ = dup("/dev/null", OFlags::RDWR, &[0, 1, 2]);
    let _ = dup("/dev/console", OFlags::WRONLY | OFlags::NOCTTY, &[1, 2]);
}

fn open_file(path: &str, flags: OFlags) -> rustix::io::Result<rustix::fd::OwnedFd> {
    rustix::fs::open(path, flags, Mode::empty())
}
