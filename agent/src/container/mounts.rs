//! What stands behind a container's mounts: pushed volumes, emptyDirs, the pod's shared memory.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Component, Path, PathBuf};

use ravelin_proto::agent as api;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, mkdirat, openat2};
use rustix::mount::{MountFlags, MoveMountFlags, OpenTreeFlags, mount, move_mount, open_tree};

use crate::error::{AgentError, Attempt, Result};
use crate::paths;
use crate::volumes::check_name;

/// A mount's source in the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Where it lies.
    pub path: PathBuf,
    /// The container must not write it, whatever its spec says: the agent itself keeps its content.
    pub readonly: bool,
}

/// Finds or makes what each source names; answers by index in the spec's mounts.
///
/// # Errors
///
/// [`AgentError::Invalid`] for names and paths that are not what the protocol allows, [`AgentError::NotFound`] for
/// a volume that was not pushed.
pub fn resolve(id: &str, sources: &[api::MountSource]) -> Result<BTreeMap<usize, Source>> {
    let mut resolved = BTreeMap::new();
    for source in sources {
        let index = usize::try_from(source.spec_index).unwrap_or(usize::MAX);
        let (path, readonly) = match &source.source {
            Some(api::mount_source::Source::Pushed(pushed)) => {
                check_name(&pushed.volume)?;
                let volume = Path::new(paths::VOLUMES).join(&pushed.volume);
                if !volume.exists() {
                    return Err(AgentError::NotFound(format!("no volume {} was pushed", pushed.volume)));
                }
                let readonly = volume.is_dir();
                (sub_path(id, index, volume, &pushed.sub_path, false)?, readonly)
            }
            Some(api::mount_source::Source::EmptyDir(dir)) => {
                (sub_path(id, index, empty_dir(dir)?, &dir.sub_path, true)?, false)
            }
            Some(api::mount_source::Source::Shm(_)) => (PathBuf::from(paths::SHM), false),
            None => {
                return Err(AgentError::Invalid(format!(
                    "mount {index} of container {id} has no kind of source"
                )));
            }
        };
        if resolved.insert(index, Source { path, readonly }).is_some() {
            return Err(AgentError::Invalid(format!("mount {index} of container {id} has two sources")));
        }
    }
    Ok(resolved)
}

/// The directory of an emptyDir, made if this is its first use.
fn empty_dir(dir: &api::EmptyDir) -> Result<PathBuf> {
    check_name(&dir.name)?;
    let parent = if dir.memory {
        PathBuf::from(paths::MEMORY_DIRS)
    } else {
        Path::new(paths::SCRATCH).join("emptydir")
    };
    let path = parent.join(&dir.name);
    match fs::create_dir(&path) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => return Ok(path),
        Err(error) => return Err(error).attempt(|| format!("create {}", path.display())),
    }
    let prepared = prepare_empty_dir(dir, &path);
    if prepared.is_err() {
        let _ = fs::remove_dir(&path);
    }
    prepared.map(|()| path)
}

fn prepare_empty_dir(dir: &api::EmptyDir, path: &Path) -> Result<()> {
    if dir.memory {
        let size = if dir.size_bytes == 0 { "50%".to_owned() } else { dir.size_bytes.to_string() };
        let options = std::ffi::CString::new(format!("size={size}")).unwrap_or_default();
        mount("tmpfs", path, c"tmpfs", MountFlags::empty(), Some(options.as_c_str()))
            .attempt(|| format!("mount a tmpfs on {}", path.display()))?;
    }
    chown(path, Some(dir.uid), Some(dir.gid))
        .attempt(|| format!("change the owner of {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(dir.mode & 0o7777))
        .attempt(|| format!("change the mode of {}", path.display()))
}

/// A path inside a volume. Containers write there, so the path is walked without leaving the volume and pinned by
/// a bind mount of what was found; no one can replace it between here and the container's own mount.
fn sub_path(id: &str, index: usize, volume: PathBuf, sub_path: &str, create: bool) -> Result<PathBuf> {
    if sub_path.is_empty() {
        return Ok(volume);
    }
    let missing = if create { Missing::MakeLikeParent } else { Missing::Refuse };
    let found = walk(&volume, Path::new(sub_path), missing)?;
    let is_dir = fs::metadata(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&found)))
        .attempt(|| format!("look at {sub_path} in {}", volume.display()))?
        .is_dir();
    let target = paths::container(id).join("mounts").join(index.to_string());
    let made = if is_dir {
        fs::create_dir_all(&target)
    } else {
        fs::create_dir_all(target.parent().unwrap_or(Path::new(paths::RUN)))
            .and_then(|()| fs::File::create(&target).map(drop))
    };
    made.attempt(|| format!("create {}", target.display()))?;
    open_tree(
        &found,
        c"",
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH,
    )
    .and_then(|tree| move_mount(&tree, c"", CWD, &target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH))
    .attempt(|| format!("bind {sub_path} of {}", volume.display()))?;
    Ok(target)
}

/// What [`walk`] does about directories that are not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Missing {
    /// It fails.
    Refuse,
    /// It makes them, each with the mode of the one it is in.
    MakeLikeParent,
    /// It makes them with the mode 0755.
    Make,
}

/// Opens a path inside a volume, links resolved as if the volume were the root.
pub(super) fn walk(volume: &Path, sub_path: &Path, missing: Missing) -> Result<OwnedFd> {
    if !sub_path.components().all(|part| matches!(part, Component::Normal(_))) {
        return Err(AgentError::Invalid(format!("the subPath {} leaves its volume", sub_path.display())));
    }
    let attempt = || format!("open {} in {}", sub_path.display(), volume.display());
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let root = rustix::fs::open(volume, flags, Mode::empty()).attempt(attempt)?;
    match openat2(&root, sub_path, flags, Mode::empty(), resolve) {
        Err(rustix::io::Errno::NOENT) if missing != Missing::Refuse => {}
        found => return found.attempt(attempt),
    }
    let mut done = PathBuf::new();
    let mut here = root.as_fd().try_clone_to_owned().attempt(attempt)?;
    for part in sub_path.components() {
        done.push(part);
        let next = match openat2(&root, &done, flags, Mode::empty(), resolve) {
            Err(rustix::io::Errno::NOENT) => {
                let mode = match missing {
                    Missing::MakeLikeParent => rustix::fs::fstat(&here).attempt(attempt)?.st_mode & 0o7777,
                    Missing::Refuse | Missing::Make => 0o755,
                };
                mkdirat(&here, Path::new(part.as_os_str()), Mode::from_raw_mode(mode)).attempt(attempt)?;
                openat2(&root, &done, flags, Mode::empty(), resolve)
            }
            found => found,
        };
        here = next.attempt(attempt)?;
    }
    Ok(here)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sub_path_stays_inside_its_volume() {
        let volume = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/etc", volume.path().join("out")).unwrap();
        std::os::unix::fs::symlink("../../../etc", volume.path().join("up")).unwrap();
        fs::create_dir(volume.path().join("etc")).unwrap();
        fs::write(volume.path().join("etc/hostname"), "inside").unwrap();
        for path in ["out/hostname", "up/hostname"] {
            let fd = walk(volume.path(), Path::new(path), Missing::Refuse).unwrap();
            let text = fs::read_to_string(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&fd)));
            assert_eq!(text.unwrap(), "inside", "{path}");
        }
        assert!(matches!(walk(volume.path(), Path::new("../x"), Missing::Make), Err(AgentError::Invalid(_))));
        assert!(matches!(walk(volume.path(), Path::new("/etc"), Missing::Make), Err(AgentError::Invalid(_))));
    }

    #[test]
    fn missing_directories_are_made_only_on_request() {
        let volume = tempfile::tempdir().unwrap();
        assert!(walk(volume.path(), Path::new("a/b"), Missing::Refuse).is_err());
        walk(volume.path(), Path::new("a/b"), Missing::MakeLikeParent).unwrap();
        assert!(volume.path().join("a/b").is_dir());
    }
}
