//! The directory that a process starts in. libcontainer changes to it and no more: here it is made where a user of runc
//! would find it made, and what is wrong with it is said.

use std::path::Path;

use super::tree::{Kind, Tree, TreeError};
use crate::error::{AgentError, Result};

/// Makes the working directory of a container's first process if it is missing: in the volume that it lies in, or in the
/// root file system. In a file system that comes to be with the container, nothing is made.
///
/// # Errors
///
/// When it cannot be made or is no directory.
pub fn make(cwd: &Path, tree: &Tree) -> Result<()> {
    tree.make(cwd, Kind::Directory).map(drop).map_err(|error| {
        let text = match &error {
            TreeError::ReadOnly(_) => "no such file or directory".to_owned(),
            TreeError::NotADirectory(_) => "not a directory".to_owned(),
            _ => error.to_string(),
        };
        failed(cwd, &text)
    })
}

fn failed(asked: &Path, text: &str) -> AgentError {
    AgentError::Failed(format!("change to the working directory {:?}: {text}", asked.display().to_string()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::tree::{Content, open};
    use super::*;

    fn made(cwd: &str, root: &Path) -> std::result::Result<(), String> {
        make(Path::new(cwd), &Tree::new(root).unwrap()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_missing_directory_is_made_in_the_root() {
        let root = tempfile::tempdir().unwrap();
        made("/made/for/../this", root.path()).unwrap();
        assert!(root.path().join("made/this").is_dir());
        made("/", root.path()).unwrap();
    }

    #[test]
    fn links_of_the_image_do_not_lead_out_of_it() {
        let (root, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::os::unix::fs::symlink(outside.path(), root.path().join("link")).unwrap();
        made("/link/folder", root.path()).unwrap();
        assert!(!outside.path().join("folder").exists());
    }

    #[test]
    fn a_directory_below_a_volume_is_made_in_the_volume_if_it_can_be_written() {
        let (root, volume) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let tree = |readonly| {
            let mut tree = Tree::new(root.path()).unwrap();
            tree.mount("/dev".into(), Content::New);
            tree.mount("/data".into(), open(volume.path(), readonly).unwrap());
            tree
        };
        let error = make(Path::new("/data/a/b"), &tree(true)).unwrap_err().to_string();
        assert_eq!(error, "change to the working directory \"/data/a/b\": no such file or directory");
        make(Path::new("/data/a/b"), &tree(false)).unwrap();
        assert!(volume.path().join("a/b").is_dir());
        make(Path::new("/data"), &tree(true)).unwrap();
        make(Path::new("/dev/shm"), &tree(true)).unwrap();
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_file_in_its_place_is_named() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("file"), "").unwrap();
        for cwd in ["/file", "/file/folder"] {
            let error = made(cwd, root.path()).unwrap_err();
            assert!(error.contains(cwd) && error.ends_with("not a directory"), "{error}");
        }
    }
}
