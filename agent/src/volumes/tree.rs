//! A volume that is a directory: its content is put in place of what it had.
//!
//! Containers have it read-only, but one that may mount can take that off its own mount. So nothing in it is trusted to be what the
//! agent left there: every step is taken from a descriptor, by one name, and no link is followed.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use ravelin_proto::agent as api;
use ravelin_proto::agent::volume_entry::Content;
use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, Uid, chownat, mkdirat, openat, readlinkat, renameat,
    symlinkat,
};
use rustix::io::Errno;

use super::own;
use crate::error::{AgentError, Attempt, Result};
use crate::removal;

/// Name of the link that a directory's content is swapped through, as the kubelet has it.
const DATA: &str = "..data";

/// A volume's directory.
struct Tree<'a> {
    path: &'a Path,
    root: OwnedFd,
}

/// Puts content into the volume at `path`, which is made if it is missing.
///
/// # Errors
///
/// [`AgentError::Invalid`] for entries the protocol does not allow; otherwise the kernel's refusal.
pub(super) fn push(path: &Path, entries: &[api::VolumeEntry]) -> Result<()> {
    for entry in entries {
        check_entry(entry)?;
    }
    let attempt = || format!("create {}", path.display());
    fs::create_dir_all(path).attempt(attempt)?;
    let tree = Tree { path, root: directory(CWD, path.as_os_str()).attempt(attempt)? };
    if entries.iter().any(|entry| entry.path == DATA) {
        tree.push_linked(entries)
    } else {
        tree.push_plain(entries)
    }
}

impl Tree<'_> {
    /// The kubelet's layout: a new directory of content, `..data` pointing to it, and links through `..data`.
    fn push_linked(&self, entries: &[api::VolumeEntry]) -> Result<()> {
        let Some(Content::Symlink(current)) =
            entries.iter().find(|entry| entry.path == DATA).and_then(|entry| entry.content.as_ref())
        else {
            return Err(AgentError::Invalid(format!("{DATA} of {} is not a link", self.path.display())));
        };
        let mut parts = Path::new(current).components();
        let (Some(Component::Normal(staged)), None) = (parts.next(), parts.next()) else {
            return Err(AgentError::Invalid(format!(
                "{DATA} of {} leads to {current:?}",
                self.path.display()
            )));
        };
        // Content first, under a name nothing leads to yet; a half-written one of an earlier attempt goes.
        let fresh = link(&self.root, DATA.as_ref()).as_deref() != Some(OsStr::new(current));
        if fresh {
            removal::remove(&self.root, staged)
                .attempt(|| format!("remove {}", self.path.join(current).display()))?;
        }
        for entry in entries.iter().filter(|entry| entry.path != DATA) {
            let inside = Path::new(&entry.path).starts_with(current);
            if inside && fresh {
                self.write(entry)?;
            }
        }
        swap_link(&self.root, DATA.as_ref(), current)
            .attempt(|| format!("point {} to {current}", self.path.join(DATA).display()))?;
        // Then the names people see, which lead through `..data`; then away with what is gone.
        for entry in
            entries.iter().filter(|entry| entry.path != DATA && !Path::new(&entry.path).starts_with(current))
        {
            self.write(entry)?;
        }
        self.prune(entries)
    }

    /// A directory without `..data`: each file is replaced by renaming, then what is gone is removed.
    fn push_plain(&self, entries: &[api::VolumeEntry]) -> Result<()> {
        for entry in entries {
            self.write(entry)?;
        }
        self.prune(entries)
    }

    /// Removes what the host no longer has.
    fn prune(&self, entries: &[api::VolumeEntry]) -> Result<()> {
        let mut keep = BTreeSet::new();
        for entry in entries {
            keep.extend(Path::new(&entry.path).ancestors().filter(|path| !path.as_os_str().is_empty()));
        }
        let mut directories = vec![PathBuf::new()];
        while let Some(path) = directories.pop() {
            let shown = self.path.join(&path);
            let attempt = || format!("list {}", shown.display());
            let here = self.enter(&path).attempt(attempt)?;
            for found in Dir::read_from(&here).attempt(attempt)? {
                let found = found.attempt(attempt)?;
                let name = OsString::from_vec(found.file_name().to_bytes().to_vec());
                let below = path.join(&name);
                if name == "." || name == ".." {
                    continue;
                }
                if !keep.contains(below.as_path()) {
                    removal::remove(&here, &name)
                        .attempt(|| format!("remove {}", shown.join(&name).display()))?;
                } else if found.file_type() == FileType::Directory {
                    directories.push(below);
                }
            }
        }
        Ok(())
    }

    /// Opens a directory of the volume; what is missing or no directory on the way becomes one.
    fn enter(&self, path: &Path) -> rustix::io::Result<OwnedFd> {
        let mut here = directory(&self.root, OsStr::new("."))?;
        for part in path.components() {
            let Component::Normal(name) = part else { return Err(Errno::INVAL) };
            here = make_directory(&here, name)?;
        }
        Ok(here)
    }

    /// Writes one entry, in place of what had its name.
    fn write(&self, entry: &api::VolumeEntry) -> Result<()> {
        let path = Path::new(&entry.path);
        let attempt = || format!("write {}", self.path.join(path).display());
        let (parent, name) = match (path.parent(), path.file_name()) {
            (Some(parent), Some(name)) => (self.enter(parent).attempt(attempt)?, name),
            // The volume's own directory.
            _ => (directory(&self.root, OsStr::new(".")).attempt(attempt)?, OsStr::new(".")),
        };
        match &entry.content {
            Some(Content::Directory(_)) => {
                let made = if name == "." { Ok(parent) } else { make_directory(&parent, name) };
                own(&File::from(made.attempt(attempt)?), entry).attempt(attempt)
            }
            Some(Content::File(content)) => write_file(&parent, name, content, entry).attempt(attempt),
            Some(Content::Symlink(target)) => {
                let owner = (Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)));
                match swap_link(&parent, name, target) {
                    Ok(false) => Ok(()),
                    Ok(true) => chownat(&parent, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW),
                    Err(errno) => Err(errno),
                }
                .attempt(attempt)
            }
            None => Err(AgentError::Invalid(format!("volume entry {:?} has no content", entry.path))),
        }
    }
}

fn write_file(
    parent: &OwnedFd,
    name: &OsStr,
    content: &[u8],
    entry: &api::VolumeEntry,
) -> std::io::Result<()> {
    let staged = OsStr::new("..writing");
    removal::remove(parent, staged)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = File::from(openat(parent, staged, flags, Mode::from_raw_mode(0o600))?);
    file.write_all(content)?;
    own(&file, entry)?;
    put(parent, staged, name)?;
    Ok(())
}

/// Gives what is `staged` its name, in one step unless a directory has it.
fn put(parent: &OwnedFd, staged: &OsStr, name: &OsStr) -> rustix::io::Result<()> {
    match renameat(parent, staged, parent, name) {
        Err(Errno::ISDIR) => {
            removal::remove(parent, name)?;
            renameat(parent, staged, parent, name)
        }
        put => put,
    }
}

/// Makes a link, or points it elsewhere; says whether it had to be done.
fn swap_link(parent: &OwnedFd, name: &OsStr, target: &str) -> rustix::io::Result<bool> {
    if link(parent, name).as_deref() == Some(OsStr::new(target)) {
        return Ok(false);
    }
    let staged = OsStr::new("..data_tmp");
    removal::remove(parent, staged)?;
    symlinkat(target, parent, staged)?;
    put(parent, staged, name).map(|()| true)
}

/// Where a link leads, if there is one.
fn link(parent: &OwnedFd, name: &OsStr) -> Option<OsString> {
    readlinkat(parent, name, Vec::new()).ok().map(|target| OsString::from_vec(target.into_bytes()))
}

/// Opens a directory by its one name.
fn directory(parent: impl AsFd, name: &OsStr) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(parent, name, flags, Mode::empty())
}

/// Opens a directory by its one name, in place of whatever else has it.
fn make_directory(parent: &OwnedFd, name: &OsStr) -> rustix::io::Result<OwnedFd> {
    match directory(parent, name) {
        Err(Errno::NOENT) => {}
        Err(Errno::NOTDIR | Errno::LOOP) => removal::remove(parent, name)?,
        opened => return opened,
    }
    match mkdirat(parent, name, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => directory(parent, name),
        Err(errno) => Err(errno),
    }
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
