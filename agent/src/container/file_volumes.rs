//! File volumes: directories of the node, folders of the machine's file device, behind which a file server stands.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use rustix::mount::{MountFlags, mount};

use super::mounts::{Missing, walk};
use crate::error::{AgentError, Attempt, Result};
use crate::paths;
use crate::sync::lock;

/// The tag of the machine's file device.
const TAG: &str = "ravelin";

/// Where volume `number` lies.
///
/// # Errors
///
/// [`AgentError::NotFound`] when the host has put no such volume there; otherwise the kernel's refusal.
pub(super) fn find(number: u32) -> Result<PathBuf> {
    mount_once()?;
    let name = number.to_string();
    // A volume that is not there is told apart from a server that is gone, which the kernel reports as an I/O error.
    match walk(Path::new(paths::FILE_VOLUMES), Path::new(&name), Missing::Refuse) {
        Ok(_) => Ok(Path::new(paths::FILE_VOLUMES).join(name)),
        Err(AgentError::Os { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            Err(AgentError::NotFound(format!("there is no file volume {number}")))
        }
        Err(error) => Err(error),
    }
}

/// Mounts the device. Not before a volume is wanted: without a server, which a pod without file volumes has not, the mount would
/// fail for good.
fn mount_once() -> Result<()> {
    // Two containers may be created at once.
    static MOUNTED: Mutex<bool> = Mutex::new(false);
    let mut mounted = lock(&MOUNTED);
    if !*mounted {
        let place = paths::FILE_VOLUMES;
        fs::create_dir_all(place).attempt(|| format!("create {place}"))?;
        // A device file of the node would be one of the guest's.
        mount(TAG, place, c"virtiofs", MountFlags::NODEV, None)
            .attempt(|| format!("mount the machine's file device at {place}"))?;
        *mounted = true;
    }
    Ok(())
}
