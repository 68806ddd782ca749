//! Where a cached image is, and what is beside it.

use std::path::{Path, PathBuf};

use super::identity::Identity;

/// Begins the names of our files in a snapshotter's directory.
const PREFIX: &str = "ravelin-";

/// The files of one cached image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// The image, once it is whole.
    pub image: PathBuf,
    /// What is known of it.
    pub record: PathBuf,
}

impl Place {
    /// Where the image of a committed snapshot is kept.
    ///
    /// The overlayfs snapshotter keeps a snapshot's files in `snapshots/<number>/fs` and removes `snapshots/<number>` with
    /// all that is in it when the last image that needs it is removed. An image of ours in that directory goes at that
    /// very moment, whether or not a pod of ours runs. Images of other
    /// directories are kept in `store` until [`super::collect`] finds their directories gone.
    pub fn of(identity: &Identity, store: &Path) -> Self {
        match snapshot(&identity.path) {
            Some(snapshot) => Self::named(snapshot, &format!("{PREFIX}{}", identity.key)),
            None => Self::named(store, &identity.key),
        }
    }

    /// Removes what was kept of the same snapshot under another name: its image is made in another way by now, or the
    /// disk has another number since the node was started.
    pub fn remove_others(&self) {
        let (Some(directory), Some(own)) = (self.image.parent(), self.image.file_stem()) else { return };
        if !own.as_encoded_bytes().starts_with(PREFIX.as_bytes()) {
            return;
        }
        for entry in directory.read_dir().into_iter().flatten().flatten() {
            let path = entry.path();
            let of_ours = entry.file_name().as_encoded_bytes().starts_with(PREFIX.as_bytes());
            if of_ours && path.file_stem() != Some(own) {
                // A machine that has it open keeps it until it ends.
                let _ = std::fs::remove_file(path);
            }
        }
    }

    /// The files called `name` in `directory`.
    pub fn named(directory: &Path, name: &str) -> Self {
        let file = |extension| directory.join(format!("{name}.{extension}"));
        Self { image: file("erofs"), record: file("record") }
    }
}

/// The overlayfs snapshotter's own directory of a snapshot, if `path` is the `fs` in one.
fn snapshot(path: &Path) -> Option<&Path> {
    let snapshot = path.parent().filter(|_| path.file_name().is_some_and(|name| name == "fs"))?;
    let number = snapshot.file_name()?.as_encoded_bytes();
    let all = snapshot.parent()?.file_name()?;
    (all == "snapshots" && number.iter().all(u8::is_ascii_digit)).then_some(snapshot)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_kept_where_it_goes_with_its_snapshot() {
        let place = |path: &str| {
            let identity = Identity { path: path.into(), key: "k".to_owned() };
            Place::of(&identity, Path::new("/store")).image.to_str().unwrap().to_owned()
        };
        let overlayfs = "/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots/12";
        assert_eq!(place(&format!("{overlayfs}/fs")), format!("{overlayfs}/ravelin-k.erofs"));
        // The native snapshotter's directory is the content itself; others are nobody's we know.
        assert_eq!(
            place("/var/lib/containerd/io.containerd.snapshotter.v1.native/snapshots/12"),
            "/store/k.erofs"
        );
        assert_eq!(place("/data/snapshots/x1/fs"), "/store/k.erofs");
        assert_eq!(place("/fs"), "/store/k.erofs");
    }

    #[test]
    fn an_image_takes_the_place_of_its_snapshots_older_ones_and_of_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let names =
            ["fs", "ravelin-old.erofs", "ravelin-old.record", "ravelin-new.erofs", "ravelin-new.record"];
        for name in names {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        let left = || {
            let mut left: Vec<_> = dir
                .path()
                .read_dir()
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            left.sort();
            left
        };
        Place::named(dir.path(), "other").remove_others();
        assert_eq!(left().len(), names.len());
        Place::named(dir.path(), "ravelin-new").remove_others();
        assert_eq!(left(), ["fs", "ravelin-new.erofs", "ravelin-new.record"]);
    }
}
