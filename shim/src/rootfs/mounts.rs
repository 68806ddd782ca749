//! Reads containerd's mounts (containerd 1.6 to 2.3, overlayfs and native snapshotters).

use std::path::PathBuf;

use super::RootfsError;

/// A mount as containerd's Task.Create carries it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RootfsMount {
    /// File system type: `overlay`, `bind`, ...
    pub kind: String,
    /// Device or directory.
    pub source: String,
    /// Mount options.
    pub options: Vec<String>,
}

/// A directory that becomes a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Source {
    pub path: PathBuf,
    pub kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A committed snapshot: never changes, so its image is kept.
    Committed,
    /// A snapshot of this container alone: its image is thrown away, and left out when it is empty.
    Private,
    /// One whose files would have the node's ids, where those of other layers have a user namespace's: it must be empty.
    Mapped,
}

/// Whether the files of these directories have the ids that a container of the pod's user namespace sees, so that they have to
/// be mounted with its mapping (overlayfs's `uidmap` and `gidmap`, which are containerd's own). Without it a snapshotter has given
/// them the node's ids.
pub fn maps_ids(mounts: &[RootfsMount]) -> bool {
    mounts.iter().flat_map(|mount| &mount.options).any(|option| option.starts_with("uidmap="))
}

/// The directories of a root file system, as far as they can be told.
pub fn directories(mounts: &[RootfsMount]) -> Vec<PathBuf> {
    sources(mounts).into_iter().flatten().map(|source| source.path).collect()
}

/// The directories of a root file system, topmost first.
pub(super) fn sources(mounts: &[RootfsMount]) -> Result<Vec<Source>, RootfsError> {
    let [mount] = mounts else {
        if mounts.is_empty() {
            return Err(RootfsError::NoMounts);
        }
        let odd = mounts.iter().find(|mount| !matches!(mount.kind.as_str(), "overlay" | "bind"));
        return Err(odd.map_or_else(
            || RootfsError::NotSupported("a root file system of several mounts".to_owned()),
            unsupported,
        ));
    };
    match mount.kind.as_str() {
        "overlay" => overlay(mount),
        "bind" | "rbind" => bind(mount),
        _ => Err(unsupported(mount)),
    }
}

fn unsupported(mount: &RootfsMount) -> RootfsError {
    let snapshotter = match mount.kind.as_str() {
        "erofs" => "the erofs snapshotter",
        kind if kind.starts_with("format/") || kind.starts_with("mkfs/") || kind.starts_with("mkdir/") => {
            "the erofs snapshotter"
        }
        "ext4" | "xfs" | "ext3" | "btrfs" if mount.source.starts_with("/dev/mapper/") => {
            "the devmapper snapshotter"
        }
        "btrfs" => "the btrfs snapshotter",
        "ext4" | "xfs" | "ext3" => "the blockfile snapshotter",
        "zfs" => "the zfs snapshotter",
        kind if kind.starts_with("fuse") => "a FUSE snapshotter",
        _ => "an unknown snapshotter",
    };
    RootfsError::NotSupported(format!(
        "a root file system of mount type {:?} (from {snapshotter}); use the overlayfs or native snapshotter",
        mount.kind
    ))
}

fn bind(mount: &RootfsMount) -> Result<Vec<Source>, RootfsError> {
    let read_only = mount.options.iter().any(|option| option == "ro");
    let kind = if read_only { Kind::Committed } else { Kind::Private };
    Ok(vec![Source { path: absolute(&mount.source)?, kind }])
}

fn overlay(mount: &RootfsMount) -> Result<Vec<Source>, RootfsError> {
    let mut lower = Vec::new();
    let mut upper = None;
    for option in &mount.options {
        let (name, value) = option.split_once('=').unwrap_or((option, ""));
        match name {
            "lowerdir" => lower = split(value)?,
            "lowerdir+" => lower.push(absolute(value)?),
            "upperdir" => upper = Some(absolute(value)?),
            // Without these the directories could not be read as they are meant; the others change only how the
            // host's kernel would have mounted them.
            "userxattr" | "datadir+" => {
                return Err(RootfsError::NotSupported(format!(
                    "an overlay root file system with the option {name:?}"
                )));
            }
            "metacopy" | "redirect_dir" if !matches!(value, "off" | "nofollow") => {
                return Err(RootfsError::NotSupported(format!(
                    "an overlay root file system with the option {option:?}"
                )));
            }
            _ => {}
        }
    }
    let kind = if maps_ids(std::slice::from_ref(mount)) { Kind::Mapped } else { Kind::Private };
    let upper = upper.map(|path| Source { path, kind });
    let lower = lower.into_iter().map(|path| Source { path, kind: Kind::Committed });
    let sources: Vec<_> = upper.into_iter().chain(lower).collect();
    if sources.is_empty() {
        return Err(RootfsError::Invalid("an overlay without lowerdir and upperdir".to_owned()));
    }
    Ok(sources)
}

/// Splits `a:b:c`, where a backslash takes the meaning from the character after it, as overlayfs does.
fn split(value: &str) -> Result<Vec<PathBuf>, RootfsError> {
    let mut paths = vec![String::new()];
    let mut characters = value.chars();
    while let Some(character) = characters.next() {
        let literal = match character {
            ':' => {
                paths.push(String::new());
                continue;
            }
            '\\' => characters
                .next()
                .ok_or_else(|| RootfsError::Invalid(format!("lowerdir ends in a backslash: {value:?}")))?,
            other => other,
        };
        if let Some(path) = paths.last_mut() {
            path.push(literal);
        }
    }
    if paths.iter().any(String::is_empty) && paths.len() > 1 {
        return Err(RootfsError::NotSupported(format!("data-only overlay layers: {value:?}")));
    }
    paths.iter().map(|path| absolute(path)).collect()
}

fn absolute(path: &str) -> Result<PathBuf, RootfsError> {
    if path.starts_with('/') {
        Ok(PathBuf::from(path))
    } else {
        Err(RootfsError::Invalid(format!("{path:?} is not an absolute path")))
    }
}
