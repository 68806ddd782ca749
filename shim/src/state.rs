//! What must be known of a pod to clean up after a shim that is gone: `/run/ravelin/<sandbox id>/state.json`.

mod process;

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};

pub use process::ProcessRef;

/// Directory of all pods' state.
pub const ROOT: &str = "/run/ravelin";
/// Largest state file read, in bytes.
const MAX_BYTES: u64 = 64 << 10;

/// A pod's state.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    /// The sandbox's id.
    pub sandbox_id: String,
    /// The bundle that containerd made for the sandbox; empty where the shim that wrote this did not know it.
    pub bundle: PathBuf,
    /// The shim's socket.
    pub socket: PathBuf,
    /// The shim.
    pub shim: Option<ProcessRef>,
    /// The machine.
    pub machine: Option<ProcessRef>,
    /// The user the machine runs as.
    pub uid: Option<u32>,
    /// The pod's network namespace, once a tap may be in it.
    pub netns: Option<PathBuf>,
    /// The pod's cgroup in the OCI spec's form, once it may exist.
    pub cgroups_path: Option<String>,
}

impl State {
    /// That of a shim which is this process and has nothing yet but its socket.
    #[must_use]
    pub fn of_a_new_shim(sandbox_id: &str, bundle: &Path, socket: &Path) -> Self {
        Self {
            sandbox_id: sandbox_id.to_owned(),
            bundle: bundle.to_owned(),
            socket: socket.to_owned(),
            shim: ProcessRef::of(std::process::id()).ok(),
            ..Self::default()
        }
    }
}

/// Where a pod's state is kept.
#[derive(Debug, Clone)]
pub struct StateDir {
    path: PathBuf,
    kept: Arc<AtomicBool>,
}

impl StateDir {
    /// The directory of the sandbox `id` under `root`.
    #[must_use]
    pub fn new(root: &Path, id: &str) -> Self {
        Self { path: root.join(id), kept: Arc::default() }
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes the state so that a reader sees either the old or the new one.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn save(&self, state: &State) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.path)?;
        let temporary = self.path.join("state.json.new");
        let mut file = fs::File::create(&temporary)?;
        file.write_all(&serde_json::to_vec(state)?)?;
        drop(file);
        fs::rename(temporary, self.file())
    }

    /// Reads the state; `None` if there is none.
    ///
    /// # Errors
    /// When the file cannot be read or is no state.
    pub fn load(&self) -> io::Result<Option<State>> {
        let file = match fs::File::open(self.file()) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        Ok(Some(serde_json::from_reader(io::Read::take(file, MAX_BYTES))?))
    }

    /// The other pods on this node and their states, as far as they can be read.
    ///
    /// # Errors
    /// When the directory of all pods' state cannot be listed.
    pub fn others(&self) -> io::Result<Vec<(Self, State)>> {
        let Some(root) = self.path.parent() else { return Ok(Vec::new()) };
        let entries = match fs::read_dir(root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let others = entries.flatten().map(|entry| entry.path()).filter(|path| *path != self.path);
        let other = |path| {
            let directory = Self { path, kept: Arc::default() };
            // One that is just being removed, or not yet written, has no machine.
            let state = directory.load().ok().flatten()?;
            Some((directory, state))
        };
        Ok(others.filter_map(other).collect())
    }

    /// Lets the directory stay when this shim removes it: something of the pod could not be removed, and its state tells
    /// the next one who tries what it is.
    pub fn keep(&self) {
        self.kept.store(true, Ordering::Relaxed);
    }

    /// Removes the directory, unless it is kept; succeeds when there is none.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn remove(&self) -> io::Result<()> {
        if self.kept.load(Ordering::Relaxed) {
            return Ok(());
        }
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn file(&self) -> PathBuf {
        self.path.join("state.json")
    }
}

/// Whether `id` may name a directory: what containerd accepts as an identifier.
#[must_use]
pub fn is_valid_id(id: &str) -> bool {
    (1..=128).contains(&id.len())
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        && id.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_read_as_it_was_written_and_goes() {
        let root = tempfile::tempdir().unwrap();
        let directory = StateDir::new(root.path(), "abc");
        assert_eq!(directory.load().unwrap(), None);
        let shim = ProcessRef::of(std::process::id()).unwrap();
        let state = State { sandbox_id: "abc".into(), shim: Some(shim), ..State::default() };
        directory.save(&state).unwrap();
        assert_eq!(directory.load().unwrap(), Some(state));
        // What one part of the shim keeps another does not remove; the next one who tries does.
        let kept = StateDir::new(root.path(), "abc");
        kept.clone().keep();
        kept.remove().unwrap();
        assert!(directory.path().exists());
        directory.remove().unwrap();
        directory.remove().unwrap();
        assert!(!directory.path().exists());
    }

    #[test]
    fn ids_that_would_leave_the_directory_are_refused() {
        for id in ["", ".", "..", "a/b", "../x", "a\0b", &"x".repeat(129)] {
            assert!(!is_valid_id(id), "{id:?}");
        }
        assert!(is_valid_id("0a1b-pod_1.x"));
    }
}
