//! Volumes whose content the host pushes: configMaps, secrets, tokens, hosts files, the termination log.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, fchown, lchown, symlink};
use std::path::{Component, Path, PathBuf};

use ravelin_proto::agent as api;
use ravelin_proto::agent::volume_entry::Content;
use rustix::mount::{MountFlags, mount};

use crate::error::{AgentError, Attempt, Result};

/// Name of the link that a directory's content is swapped through, as the kubelet has it.
const DATA: &str = "..data";

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
    for entry in &request.entries {
        check_entry(entry)?;
    }
    if request.writable && volume.exists() {
        return Ok(());
    }
    fs::create_dir_all(&volume).attempt(|| format!("create {}", volume.display()))?;
    if request.entries.iter().any(|entry| entry.path == DATA) {
        push_linked(&volume, &request.entries)
    } else {
        push_plain(&volume, &request.entries)
    }
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
    let mut file =
        OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(path).attempt(attempt)?;
    let most = u64::from(request.max_bytes.min(MOST));
    let size = file.metadata().attempt(attempt)?.len();
    file.seek(SeekFrom::Start(size.saturating_sub(most))).attempt(attempt)?;
    let mut data = Vec::new();
    file.take(most).read_to_end(&mut data).attempt(attempt)?;
    Ok(data)
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
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
        .attempt(attempt)?;
    file.write_all(content).attempt(attempt)?;
    own(&file, entry).attempt(attempt)
}

/// The kubelet's layout: a new directory of content, `..data` pointing to it, and links through `..data`.
fn push_linked(volume: &Path, entries: &[api::VolumeEntry]) -> Result<()> {
    let Some(Content::Symlink(current)) =
        entries.iter().find(|entry| entry.path == DATA).and_then(|entry| entry.content.as_ref())
    else {
        return Err(AgentError::Invalid(format!("{DATA} of {} is not a link", volume.display())));
    };
    if Path::new(current).components().count() != 1 {
        return Err(AgentError::Invalid(format!("{DATA} of {} leads to {current:?}", volume.display())));
    }
    // Content first, under a name nothing leads to yet; a half-written one of an earlier attempt goes.
    let staged = volume.join(current);
    let live = fs::read_link(volume.join(DATA)).ok();
    let fresh = live.as_deref() != Some(Path::new(current));
    if fresh {
        remove(&staged)?;
    }
    for entry in entries.iter().filter(|entry| entry.path != DATA) {
        let inside = Path::new(&entry.path).starts_with(current);
        if inside && fresh {
            write(volume, entry)?;
        }
    }
    swap_link(volume, DATA, current)?;
    // Then the names people see, which lead through `..data`; then away with what is gone.
    for entry in
        entries.iter().filter(|entry| entry.path != DATA && !Path::new(&entry.path).starts_with(current))
    {
        write(volume, entry)?;
    }
    prune(volume, entries)
}

/// A directory without `..data`: each file is replaced by renaming, then what is gone is removed.
fn push_plain(volume: &Path, entries: &[api::VolumeEntry]) -> Result<()> {
    for entry in entries {
        write(volume, entry)?;
    }
    prune(volume, entries)
}

/// Removes what the host no longer has.
fn prune(volume: &Path, entries: &[api::VolumeEntry]) -> Result<()> {
    let mut keep = BTreeSet::new();
    for entry in entries {
        keep.extend(Path::new(&entry.path).ancestors().filter(|path| !path.as_os_str().is_empty()));
    }
    let mut directories = vec![PathBuf::new()];
    while let Some(directory) = directories.pop() {
        let here = volume.join(&directory);
        for found in fs::read_dir(&here).attempt(|| format!("list {}", here.display()))?.flatten() {
            let path = directory.join(found.file_name());
            if !keep.contains(path.as_path()) {
                remove(&found.path())?;
            } else if found.file_type().is_ok_and(|kind| kind.is_dir()) {
                directories.push(path);
            }
        }
    }
    Ok(())
}

fn remove(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(_) => Ok(()),
    };
    removed.attempt(|| format!("remove {}", path.display()))
}

/// Writes one entry, in place of what had its name.
fn write(volume: &Path, entry: &api::VolumeEntry) -> Result<()> {
    let path = volume.join(&entry.path);
    let attempt = || format!("write {}", path.display());
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).attempt(attempt)?;
    }
    match &entry.content {
        Some(Content::Directory(_)) => {
            if fs::symlink_metadata(&path).is_ok_and(|metadata| !metadata.is_dir()) {
                remove(&path)?;
            }
            fs::create_dir_all(&path).attempt(attempt)?;
            let directory = File::open(&path).attempt(attempt)?;
            own(&directory, entry).attempt(attempt)
        }
        Some(Content::File(content)) => {
            if path.is_dir() && !path.is_symlink() {
                remove(&path)?;
            }
            let staged = path.with_file_name("..writing");
            remove(&staged)?;
            let mut file = File::create_new(&staged).attempt(attempt)?;
            file.write_all(content).attempt(attempt)?;
            own(&file, entry).attempt(attempt)?;
            fs::rename(&staged, &path).attempt(attempt)
        }
        Some(Content::Symlink(target)) => {
            if fs::read_link(&path).is_ok_and(|current| current == Path::new(target)) {
                return Ok(());
            }
            if path.is_dir() && !path.is_symlink() {
                remove(&path)?;
            }
            swap_link(volume, &entry.path, target)?;
            lchown(&path, Some(entry.uid), Some(entry.gid)).attempt(attempt)
        }
        None => Err(AgentError::Invalid(format!("volume entry {:?} has no content", entry.path))),
    }
}

/// Makes a link, or points it elsewhere, in one step.
fn swap_link(volume: &Path, name: &str, target: &str) -> Result<()> {
    let link = volume.join(name);
    if fs::read_link(&link).is_ok_and(|current| current == Path::new(target)) {
        return Ok(());
    }
    let staged = link.with_file_name("..data_tmp");
    remove(&staged)?;
    symlink(target, &staged)
        .and_then(|()| fs::rename(&staged, &link))
        .attempt(|| format!("point {} to {target}", link.display()))
}

fn own(file: &File, entry: &api::VolumeEntry) -> std::io::Result<()> {
    // The owner first: changing it takes the set-id bits away.
    fchown(file, Some(entry.uid), Some(entry.gid))?;
    file.set_permissions(fs::Permissions::from_mode(entry.mode & 0o7777))
}

fn check_entry(entry: &api::VolumeEntry) -> Result<()> {
    let path = Path::new(&entry.path);
    let normal = |path: &Path| path.components().all(|part| matches!(part, Component::Normal(_)));
    // The empty path is the volume's own directory.
    if entry.path.is_empty() && matches!(entry.content, Some(Content::Directory(_))) {
        return Ok(());
    }
    if entry.path.is_empty() || !normal(path) {
        return Err(AgentError::Invalid(format!(
            "volume entry {:?} is not a plain relative path",
            entry.path
        )));
    }
    if let Some(Content::Symlink(target)) = &entry.content {
        // Where the link leads, counted from the volume's root, never above it.
        let mut depth = path.components().count() - 1;
        for part in Path::new(target).components() {
            depth = match part {
                Component::Normal(_) => Some(depth + 1),
                Component::CurDir => Some(depth),
                Component::ParentDir => depth.checked_sub(1),
                Component::RootDir | Component::Prefix(_) => None,
            }
            .ok_or_else(|| {
                AgentError::Invalid(format!(
                    "the link {:?} leads out of its volume, to {target:?}",
                    entry.path
                ))
            })?;
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "volumes_tests.rs"]
mod tests;
