//! Finds out of which volume, and of which place in it, a subPath is.
//!
//! The kubelet binds the part to `pods/<uid>/volume-subpaths/<volume>/<container>/<index>`. What is bound there says the
//! kernel's mount table, not the path.

use std::os::fd::AsRawFd;
use std::path::{Component, Path, PathBuf};

use ravelin_policy::{Roots, volume_directory};
use rustix::fs::OFlags;

use super::{VolumeError, host};

/// One line of `/proc/self/mountinfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct MountEntry {
    device: String,
    /// Which directory of the file system is mounted.
    root: PathBuf,
    point: PathBuf,
}

/// The host path of the volume called `name` of the pod to which the subPath `bound` belongs. Blocks.
pub(super) fn find_volume(bound: &str, name: &str, roots: &Roots) -> Result<String, VolumeError> {
    let unknown = || VolumeError::Content {
        path: bound.to_owned(),
        reason: format!("is a subPath of a volume {name} that the pod does not have"),
    };
    let volumes = Path::new(bound).ancestors().nth(4).map(|pod| pod.join("volumes")).ok_or_else(unknown)?;
    let volumes = volumes.to_str().ok_or_else(unknown)?;
    let failed = |source| VolumeError::Read { path: volumes.to_owned(), source };
    let directory = host::open(volumes, roots, OFlags::RDONLY | OFlags::DIRECTORY).map_err(failed)?;
    for plugin in rustix::fs::Dir::read_from(&directory).map_err(|errno| failed(errno.into()))?.flatten() {
        let Ok(plugin) = plugin.file_name().to_str() else { continue };
        let path = [volumes, plugin, name]
            .into_iter()
            .chain(volume_directory(&plugin.replacen('~', "/", 1)).iter().copied())
            .collect::<Vec<_>>()
            .join("/");
        if !plugin.starts_with('.') && host::open(&path, roots, OFlags::PATH | OFlags::DIRECTORY).is_ok() {
            return Ok(path);
        }
    }
    Err(unknown())
}

/// Where in the volume at `volume` the part that is bound at `bound` lies. Blocks.
pub(super) fn inside(bound: &str, volume: &str, roots: &Roots) -> Result<String, VolumeError> {
    let failed = |source| VolumeError::Read { path: bound.to_owned(), source };
    let real = |path: &str| {
        let file = host::open(path, roots, OFlags::PATH)?;
        std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))
    };
    let (bound_at, volume_at) = (real(bound).map_err(failed)?, real(volume).map_err(failed)?);
    let table = parse(&std::fs::read("/proc/self/mountinfo").map_err(failed)?);
    relate(&table, &bound_at, &volume_at).ok_or_else(|| VolumeError::Content {
        path: bound.to_owned(),
        reason: format!("is not a part of the volume {volume}"),
    })
}

fn relate(table: &[MountEntry], bound: &Path, volume: &Path) -> Option<String> {
    let part = place(table, bound).filter(|(_, _, exactly)| *exactly)?;
    let whole = place(table, volume)?;
    if part.0 != whole.0 {
        return None;
    }
    let rest = part.1.strip_prefix(&whole.1).ok()?;
    let plain = rest.components().all(|part| matches!(part, Component::Normal(_)));
    plain.then(|| rest.to_str().map(str::to_owned))?
}

/// The device and the path in its file system that `path` stands for, and whether `path` is a mount point itself.
fn place<'a>(table: &'a [MountEntry], path: &Path) -> Option<(&'a str, PathBuf, bool)> {
    // Of several mounts on one point the last hides the others.
    let entry = table
        .iter()
        .enumerate()
        .filter(|(_, entry)| path.starts_with(&entry.point))
        .max_by_key(|(index, entry)| (entry.point.as_os_str().len(), *index))?
        .1;
    let rest = path.strip_prefix(&entry.point).ok()?;
    let exactly = rest.as_os_str().is_empty();
    let at = if exactly { entry.root.clone() } else { entry.root.join(rest) };
    Some((&entry.device, at, exactly))
}

/// `36 35 98:0 /root /point options ...`, with blanks and backslashes in octal. Some other mount of the node may have a
/// name that is no UTF-8; a volume's has none.
fn parse(text: &[u8]) -> Vec<MountEntry> {
    String::from_utf8_lossy(text)
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(2);
            let device = fields.next()?.to_owned();
            let root = unescape(fields.next()?).into();
            let point = unescape(fields.next()?).into();
            Some(MountEntry { device, root, point })
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
";

    fn related(bound: &str, volume: &str) -> Option<String> {
        relate(&parse(TABLE), Path::new(bound), Path::new(volume))
    }

    #[test]
    fn a_sub_path_is_found_in_its_volume() {
        let volumes = "/k/pods/u/volumes/kubernetes.io~empty-dir";
        let bound = "/k/pods/u/volume-subpaths";
        assert_eq!(related(&format!("{bound}/disk/c/0"), &format!("{volumes}/disk")).as_deref(), Some("a b"));
        assert_eq!(related(&format!("{bound}/mem/c/1"), &format!("{volumes}/mem")).as_deref(), Some("x/y"));
        assert_eq!(related(&format!("{bound}/mem/c/1"), &format!("{volumes}/disk")), None);
        // Nothing is bound there: it would be a directory of the host's.
        assert_eq!(related(&format!("{bound}/disk/c/7"), &format!("{volumes}/disk")), None);
    }
}
