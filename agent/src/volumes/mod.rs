//! Volumes whose content the host pushes: configMaps, secrets, tokens, hosts files, the termination log.

mod tree;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, fchown, symlink};
use std::path::{Path, PathBuf};

use ravelin_proto::agent as api;
use ravelin_proto::agent::volume_entry::Content;
use rustix::fs::OFlags;
use rustix::mount::{MountFlags, mount};

use crate::error::{AgentError, Attempt, Result};
use crate::opening::{self, Proc};

/// Refuses what could be more than one component of a path.
///
/// # Errors
///
/// [`AgentError::Invalid`].
pub fn check_name(name: &str) -> Result<()> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if name.is_empty() || name.len() > 200 || name.starts_with('.') || !name.bytes().all(plain) {
        return Err(AgentError::Invalid(format!("{name:?} is no name for a volume")));
    }
    Ok(())
}

/// Where volumes of one kind lie. Each kind has room of its own, so that what containers write into their files takes
/// nothing from the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Directories, which containers cannot write: memory.
    Trees,
    /// Single files, which containers may write, and which may be secret: memory.
    Files,
    /// Single files that are there to be written: the scratch disk.
    Logs,
}

impl Place {
    const fn of(request: &api::PushVolumeRequest) -> Self {
        match (request.single_file, request.writable) {
            (false, _) => Self::Trees,
            (true, false) => Self::Files,
            (true, true) => Self::Logs,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Trees => "trees",
            Self::Files => "files",
            Self::Logs => "logs",
        }
    }
}

/// Makes room for volumes below `volumes`, and for those that containers write in `logs`, on the scratch disk. Trees get an
/// eighth of the guest's memory at most, files 16 MiB.
///
/// # Errors
///
/// When the kernel refuses.
pub fn prepare(volumes: &Path, logs: &Path) -> Result<()> {
    let attempt = || format!("make room for volumes in {}", volumes.display());
    for (place, options) in [(Place::Trees, c"mode=0755,size=12%"), (Place::Files, c"mode=0755,size=16m")] {
        let directory = volumes.join(place.name());
        fs::create_dir(&directory).attempt(attempt)?;
        mount("volumes", &directory, c"tmpfs", MountFlags::empty(), Some(options)).attempt(attempt)?;
    }
    fs::create_dir_all(logs).attempt(attempt)?;
    symlink(logs, volumes.join(Place::Logs.name())).attempt(attempt)
}

/// Where a pushed volume lies.
///
/// # Errors
///
/// [`AgentError::NotFound`] when there is no such volume.
pub fn find(volumes: &Path, name: &str) -> Result<PathBuf> {
    check_name(name)?;
    [Place::Trees, Place::Files, Place::Logs]
        .into_iter()
        .map(|place| volumes.join(place.name()).join(name))
        .find(|volume| volume.exists())
        .ok_or_else(|| AgentError::NotFound(format!("no volume {name} was pushed")))
}

/// Puts a volume's content in place of what it had.
///
/// # Errors
///
/// [`AgentError::Invalid`] for entries the protocol does not allow; otherwise the kernel's refusal.
pub fn push(volumes: &Path, request: &api::PushVolumeRequest) -> Result<()> {
    check_name(&request.volume)?;
    let volume = volumes.join(Place::of(request).name()).join(&request.volume);
    if request.single_file {
        return push_file(&volume, request);
    }
    if request.writable && volume.exists() {
        return Ok(());
    }
    tree::push(&volume, &request.entries)
}

/// Reads the end of a file that containers may write, and removes it if that was the last time.
///
/// # Errors
///
/// [`AgentError::NotFound`] when there is no such volume; [`AgentError::Invalid`] when it is not such a file.
pub fn read(volumes: &Path, request: &api::ReadVolumeRequest) -> Result<Vec<u8>> {
    let path = find(volumes, &request.volume)?;
    let data = read_file(&path, request);
    // What is gone already needs no removal.
    if request.remove {
        let _ = fs::remove_file(&path);
    }
    data
}

fn read_file(path: &Path, request: &api::ReadVolumeRequest) -> Result<Vec<u8>> {
    const MOST: u32 = 1 << 20;
    let metadata = fs::symlink_metadata(path).attempt(|| format!("look at {}", path.display()))?;
    if !metadata.is_file() {
        return Err(AgentError::Invalid(format!("volume {} is not a single file", request.volume)));
    }
    let attempt = || format!("read {}", path.display());
    let mut file = open_file(path, OFlags::RDONLY).attempt(attempt)?;
    let most = u64::from(request.max_bytes.min(MOST));
    let size = file.metadata().attempt(attempt)?.len();
    file.seek(SeekFrom::Start(size.saturating_sub(most))).attempt(attempt)?;
    let mut data = Vec::new();
    file.take(most).read_to_end(&mut data).attempt(attempt)?;
    Ok(data)
}

/// Opens a single file that is there. A lease that a container holds on it makes that fail, and ends; it is not waited for.
fn open_file(path: &Path, flags: OFlags) -> io::Result<File> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    Proc::open()?.regular(opening::directory(parent)?, name, flags)
}

/// A single file keeps its inode, which is what a container has mounted.
fn push_file(path: &Path, request: &api::PushVolumeRequest) -> Result<()> {
    let [entry] = request.entries.as_slice() else {
        return Err(AgentError::Invalid(format!(
            "volume {} is one file but has another number",
            request.volume
        )));
    };
    let Some(Content::File(content)) = &entry.content else {
        return Err(AgentError::Invalid(format!(
            "volume {} is one file but holds something else",
            request.volume
        )));
    };
    if path.exists() && request.writable {
        return Ok(());
    }
    let attempt = || format!("write {}", path.display());
    let new = OpenOptions::new().write(true).create_new(true).custom_flags(libc::O_NOFOLLOW).open(path);
    let mut file = match new {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => open_file(path, OFlags::WRONLY),
        new => new,
    }
    .attempt(attempt)?;
    file.set_len(0).attempt(attempt)?;
    file.write_all(content).attempt(attempt)?;
    own(&file, entry).attempt(attempt)
}

fn own(file: &File, entry: &api::VolumeEntry) -> io::Result<()> {
    // The owner first: changing it takes the set-id bits away.
    fchown(file, Some(entry.uid), Some(entry.gid))?;
    file.set_permissions(fs::Permissions::from_mode(entry.mode & 0o7777))
}

#[cfg(test)]
mod tests;
