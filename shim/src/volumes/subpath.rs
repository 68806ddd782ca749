//! Finds out of which volume, and of which place in it, a subPath is.
//!
//! The kubelet binds the part to `pods/<uid>/volume-subpaths/<volume>/<container>/<index>`. What is bound there says the
//! kernel's mount table, not the path.

use std::path::{Component, Path, PathBuf};

use ravelin_policy::{Roots, volume_directory};
use rustix::fs::OFlags;

use super::{VolumeError, host};

/// What is mounted as a subPath.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    /// The host path of the whole volume.
    pub whole: String,
    /// Where in it the part lies.
    pub inside: String,
    /// Its name has been removed since it was bound.
    pub removed: bool,
}

/// One line of `/proc/self/mountinfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct MountEntry {
    device: String,
    /// Which directory of the file system is mounted.
    root: PathBuf,
    /// That directory, or file, has no name any more.
    removed: bool,
    point: PathBuf,
}

/// Finds the volume called `name` of the pod to which the subPath `bound` belongs, and the place in it. Blocks.
///
/// Volumes of several kinds may have one name, for that of a claim's is its persistent volume's: the one counts whose part is bound.
pub(super) fn find(bound: &str, name: &str, roots: &Roots) -> Result<Part, VolumeError> {
    let wrong = |reason: String| VolumeError::Content { path: bound.to_owned(), reason };
    let unknown = || wrong(format!("is a subPath of a volume {name} that the pod does not have"));
    let volumes = Path::new(bound).ancestors().nth(4).map(|pod| pod.join("volumes")).ok_or_else(unknown)?;
    let volumes = volumes.to_str().ok_or_else(unknown)?;
    let failed = |path: &str| {
        let path = path.to_owned();
        move |source| VolumeError::Read { path, source }
    };
    let bound_at = host::real(bound, roots).map_err(failed(bound))?;
    let table = parse(&std::fs::read("/proc/self/mountinfo").map_err(failed(bound))?);
    let directory =
        host::open(volumes, roots, OFlags::RDONLY | OFlags::DIRECTORY).map_err(failed(volumes))?;
    let mut there = false;
    for plugin in rustix::fs::Dir::read_from(&directory).map_err(|errno| failed(volumes)(errno.into()))? {
        let plugin = plugin.map_err(|errno| failed(volumes)(errno.into()))?;
        let Ok(plugin) = plugin.file_name().to_str() else { continue };
        if plugin.starts_with('.') {
            continue;
        }
        let whole = [volumes, plugin, name]
            .into_iter()
            .chain(volume_directory(&plugin.replacen('~', "/", 1)).iter().copied())
            .collect::<Vec<_>>()
            .join("/");
        let Ok(whole_at) = host::real(&whole, roots) else { continue };
        there = true;
        if let Some((inside, removed)) = relate(&table, &bound_at, &whole_at) {
            return Ok(Part { whole, inside, removed });
        }
    }
    Err(if there { wrong(format!("is not a part of the volume {name}")) } else { unknown() })
}

/// Where in `volume` the part that is bound at `bound` lies, if it is one; and whether it has been removed there.
fn relate(table: &[MountEntry], bound: &Path, volume: &Path) -> Option<(String, bool)> {
    let part = place(table, bound).filter(|place| place.exactly)?;
    let whole = place(table, volume)?;
    if part.device != whole.device || whole.removed {
        return None;
    }
    let rest = part.path.strip_prefix(&whole.path).ok()?;
    let plain = rest.components().all(|part| matches!(part, Component::Normal(_)));
    plain.then(|| rest.to_str().map(|rest| (rest.to_owned(), part.removed)))?
}

/// What a path of the node stands for.
struct Place<'a> {
    device: &'a str,
    /// The path in the device's file system.
    path: PathBuf,
    removed: bool,
    /// The path is a mount point itself.
    exactly: bool,
}

fn place<'a>(table: &'a [MountEntry], path: &Path) -> Option<Place<'a>> {
    // Of several mounts on one point the last hides the others.
    let entry = table
        .iter()
        .enumerate()
        .filter(|(_, entry)| path.starts_with(&entry.point))
        .max_by_key(|(index, entry)| (entry.point.as_os_str().len(), *index))?
        .1;
    let rest = path.strip_prefix(&entry.point).ok()?;
    let exactly = rest.as_os_str().is_empty();
    let path = if exactly { entry.root.clone() } else { entry.root.join(rest) };
    Some(Place { device: &entry.device, path, removed: entry.removed, exactly })
}

/// `36 35 98:0 /root /point options ...`, with blanks and backslashes in octal. Some other mount of the node may have a
/// name that is no UTF-8; a volume's has none.
fn parse(text: &[u8]) -> Vec<MountEntry> {
    String::from_utf8_lossy(text)
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(2);
            let device = fields.next()?.to_owned();
            let root = unescape(fields.next()?);
            // What the kernel writes behind a name that is no more; no name has two slashes.
            let (root, removed) =
                root.strip_suffix("//deleted").map_or((root.as_str(), false), |root| (root, true));
            let root = root.into();
            let point = unescape(fields.next()?).into();
            Some(MountEntry { device, root, removed, point })
        })
        .collect()
}

fn unescape(field: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(field.to_owned(), |text, (code, character)| text.replace(code, character))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"\
20 1 8:1 / / rw - ext4 /dev/sda1 rw
21 20 8:2 / /media/b\xfccher rw - vfat /dev/sdb1 rw
30 20 0:50 / /k/pods/u/volumes/kubernetes.io~empty-dir/mem rw - tmpfs tmpfs rw
31 20 8:1 /k/pods/u/volumes/kubernetes.io~empty-dir/disk/a\\040b /k/pods/u/volume-subpaths/disk/c/0 rw - ext4 x rw
32 20 0:50 /x/y /k/pods/u/volume-subpaths/mem/c/1 rw - tmpfs tmpfs rw
33 20 0:50 /x/z//deleted /k/pods/u/volume-subpaths/mem/c/2 rw - tmpfs tmpfs rw
";

    fn related(bound: &str, volume: &str) -> Option<(String, bool)> {
        relate(&parse(TABLE), Path::new(bound), Path::new(volume))
    }

    #[test]
    fn a_sub_path_is_found_in_its_volume() {
        let volumes = "/k/pods/u/volumes/kubernetes.io~empty-dir";
        let bound = "/k/pods/u/volume-subpaths";
        let part =
            |part: &str, volume: &str| related(&format!("{bound}/{part}"), &format!("{volumes}/{volume}"));
        assert_eq!(part("disk/c/0", "disk"), Some(("a b".to_owned(), false)));
        assert_eq!(part("mem/c/1", "mem"), Some(("x/y".to_owned(), false)));
        assert_eq!(part("mem/c/2", "mem"), Some(("x/z".to_owned(), true)));
        assert_eq!(part("mem/c/1", "disk"), None);
        // Nothing is bound there: it would be a directory of the host's.
        assert_eq!(part("disk/c/7", "disk"), None);
    }
}
