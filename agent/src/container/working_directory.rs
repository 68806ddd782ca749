//! The directory that a process starts in. libcontainer changes to it and no more: here it is made where a user of runc
//! would find it made, and what is wrong with it is said.

use std::fs;
use std::os::fd::AsRawFd;
use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::{Mount, Spec};
use rustix::process::Pid;

use super::mounts::{Missing, walk};
use crate::error::{AgentError, Result};

/// Makes the working directory of a container's first process if it is missing: in the volume that it lies in, or in the
/// mounted root file system `rootfs`.
///
/// # Errors
///
/// When it cannot be made or is no directory.
pub fn make(spec: &Spec, rootfs: &Path) -> Result<()> {
    let Some(process) = spec.process() else { return Ok(()) };
    let cwd = clean(process.cwd());
    let mounts = spec.mounts().as_deref().unwrap_or_default();
    let above = mounts
        .iter()
        .rev()
        .filter_map(|mount| Some((mount, cwd.strip_prefix(clean(mount.destination())).ok()?)))
        // The last of those that lie deepest covers the others.
        .min_by_key(|(_, rest)| rest.components().count());
    match above {
        None => enter(rootfs, &cwd, Missing::Make, process.cwd()),
        // A file system that comes to be with the container's mounts.
        Some((mount, _)) if !has_option(mount, "bind") && !has_option(mount, "rbind") => Ok(()),
        Some((mount, rest)) => {
            let Some(volume) = mount.source() else { return Ok(()) };
            let missing = if has_option(mount, "ro") { Missing::Refuse } else { Missing::Make };
            enter(volume, rest, missing, process.cwd())
        }
    }
}

/// Looks for the working directory of a further process in the container whose first process is `init`.
///
/// # Errors
///
/// When it is missing or no directory.
pub fn check(cwd: &Path, init: Pid) -> Result<()> {
    let root = PathBuf::from(format!("/proc/{}/root", init.as_raw_nonzero()));
    enter(&root, &clean(cwd), Missing::Refuse, cwd)
}

fn enter(root: &Path, path: &Path, missing: Missing, asked: &Path) -> Result<()> {
    if path.as_os_str().is_empty() {
        return Ok(());
    }
    let failed = |text: &str| {
        AgentError::Failed(format!(
            "change to the working directory {:?}: {text}",
            asked.display().to_string()
        ))
    };
    let found = walk(root, path, missing).map_err(|error| match &error {
        AgentError::Os { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            failed("no such file or directory")
        }
        AgentError::Os { source, .. } if source.kind() == std::io::ErrorKind::NotADirectory => {
            failed("not a directory")
        }
        _ => failed(&error.to_string()),
    })?;
    let is_dir =
        fs::metadata(format!("/proc/self/fd/{}", found.as_raw_fd())).is_ok_and(|found| found.is_dir());
    if is_dir { Ok(()) } else { Err(failed("not a directory")) }
}

fn has_option(mount: &Mount, option: &str) -> bool {
    mount.options().iter().flatten().any(|each| each == option)
}

/// A path below the root without `.`, `..` and the leading `/`.
fn clean(path: &Path) -> PathBuf {
    let mut cleaned = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(part) => cleaned.push(part),
            Component::ParentDir => drop(cleaned.pop()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    cleaned
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn spec(cwd: &str, mounts: serde_json::Value) -> Spec {
        serde_json::from_value(json!({
            "ociVersion": "1.1.0",
            "process": { "cwd": cwd, "args": ["sh"], "user": { "uid": 1000, "gid": 1000 } },
            "mounts": mounts
        }))
        .unwrap()
    }

    #[test]
    fn a_missing_directory_is_made_in_the_root() {
        let root = tempfile::tempdir().unwrap();
        make(&spec("/made/./for/../this", json!([])), root.path()).unwrap();
        assert!(root.path().join("made/this").is_dir());
        make(&spec("/", json!([])), root.path()).unwrap();
    }

    #[test]
    fn links_of_the_image_do_not_lead_out_of_it() {
        let (root, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::os::unix::fs::symlink(outside.path(), root.path().join("link")).unwrap();
        // The link's target does not exist inside.
        assert!(make(&spec("/link/folder", json!([])), root.path()).is_err());
        assert!(!outside.path().join("folder").exists());
    }

    #[test]
    fn a_directory_below_a_volume_is_made_in_the_volume_if_it_can_be_written() {
        let (root, volume) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mounts = |option: &str| {
            json!([
                { "destination": "/dev", "type": "tmpfs", "source": "tmpfs" },
                { "destination": "/data", "type": "bind", "source": volume.path(), "options": ["rbind", option] }
            ])
        };
        let error = make(&spec("/data/a/b", mounts("ro")), root.path()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "change to the working directory \"/data/a/b\": no such file or directory"
        );
        make(&spec("/data/a/b", mounts("rw")), root.path()).unwrap();
        assert!(volume.path().join("a/b").is_dir());
        make(&spec("/data", mounts("ro")), root.path()).unwrap();
        make(&spec("/dev/shm", mounts("ro")), root.path()).unwrap();
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_file_in_its_place_is_named() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("file"), "").unwrap();
        for cwd in ["/file", "/file/folder"] {
            let error = make(&spec(cwd, json!([])), root.path()).unwrap_err().to_string();
            assert!(error.contains(cwd) && error.ends_with("not a directory"), "{error}");
        }
    }
}
