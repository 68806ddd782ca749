use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use super::MachineError;

/// Opens `/dev/kvm`.
///
/// # Errors
/// Says what to do when the device is missing.
pub fn open_kvm() -> Result<OwnedFd, MachineError> {
    match OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        Ok(file) => Ok(file.into()),
        Err(source)
            if source.kind() == io::ErrorKind::NotFound
                || matches!(source.raw_os_error(), Some(libc::ENODEV | libc::ENXIO)) =>
        {
            Err(MachineError::NoKvm(source))
        }
        Err(source) => {
            Err(MachineError::Open { what: "device", path: "/dev/kvm".into(), key: "none", source })
        }
    }
}

/// Opens the guest kernel, an uncompressed ELF `vmlinux`.
///
/// # Errors
/// Names the path and the configuration key.
pub fn open_kernel(path: &Path) -> Result<OwnedFd, MachineError> {
    open(path, "guest kernel", "guest.kernel")
}

/// Opens the initramfs that holds the agent.
///
/// # Errors
/// Names the path and the configuration key.
pub fn open_initramfs(path: &Path) -> Result<OwnedFd, MachineError> {
    open(path, "guest initramfs", "guest.initramfs")
}

fn open(path: &Path, what: &'static str, key: &'static str) -> Result<OwnedFd, MachineError> {
    let failed = |source| MachineError::Open { what, path: path.to_owned(), key, source };
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file")));
    }
    if metadata.len() == 0 {
        return Err(failed(io::Error::new(io::ErrorKind::InvalidData, "it is empty")));
    }
    Ok(file.into())
}
