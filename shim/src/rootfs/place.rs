//! Where a cached image is, and what is beside it.

use std::path::{Path, PathBuf};

use super::identity::Identity;

/// The files of one cached image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// The image, once it is whole.
    pub image: PathBuf,
    /// What is known of it.
    pub record: PathBuf,
    /// The image while it is being made.
    pub temporary: PathBuf,
}

impl Place {
    /// Where the image of a committed snapshot is kept.
    ///
    /// The overlayfs snapshotter keeps a snapshot's files in `snapshots/<number>/fs` and removes `snapshots/<number>` with
    /// all that is in it when the last image that needs it is removed. An image of ours in that directory goes at that
    /// very moment, whether or not a pod of ours runs, and its space counts as the image's on the node. Images of other
    /// directories are kept in `store` until [`super::collect`] finds their directories gone.
    pub fn of(identity: &Identity, store: &Path) -> Self {
        match snapshot(&identity.path) {
            Some(snapshot) => Self::named(snapshot, &format!("ravelin-{}", identity.key)),
            None => Self::named(store, &identity.key),
        }
    }

    /// The files called `name` in `directory`.
    pub fn named(directory: &Path, name: &str) -> Self {
        let file = |extension| directory.join(format!("{name}.{extension}"));
        Self { image: file("erofs"), record: file("record"), temporary: file("tmp") }
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
}
