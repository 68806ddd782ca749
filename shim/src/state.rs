//! What must be known of a pod to clean up after a shim that is gone: `/run/ravelin/<sandbox id>/state.json`.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Directory of all pods' state.
pub const ROOT: &str = "/run/ravelin";
/// Largest state file read, in bytes.
const MAX_BYTES: u64 = 64 << 10;

/// A process, named for ever: its pid may be taken by another one, its start time may not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessRef {
    /// Its pid.
    pub pid: u32,
    /// Its start in clock ticks since the host's boot.
    pub start_time: u64,
}

impl ProcessRef {
    /// This process.
    #[must_use]
    pub fn own() -> Option<Self> {
        let pid = std::process::id();
        let stat = fs::read_to_string("/proc/self/stat").ok()?;
        // The name in parentheses may hold anything.
        let start_time = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()?;
        Some(Self { pid, start_time })
    }
}

/// A pod's state.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    /// The sandbox's id.
    pub sandbox_id: String,
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

/// Where a pod's state is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateDir(PathBuf);

impl StateDir {
    /// The directory of the sandbox `id` under `root`.
    #[must_use]
    pub fn new(root: &Path, id: &str) -> Self {
        Self(root.join(id))
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Writes the state so that a reader sees either the old or the new one.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn save(&self, state: &State) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.0)?;
        let temporary = self.0.join("state.json.new");
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

    /// The states of the other pods on this node, as far as they can be read.
    ///
    /// # Errors
    /// When the directory of all pods' state cannot be listed.
    pub fn others(&self) -> io::Result<Vec<State>> {
        let Some(root) = self.0.parent() else { return Ok(Vec::new()) };
        let entries = match fs::read_dir(root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let others = entries.flatten().map(|entry| entry.path()).filter(|path| *path != self.0);
        // One that is just being removed, or not yet written, has no machine.
        Ok(others.filter_map(|path| Self(path).load().ok().flatten()).collect())
    }

    /// Removes the directory; succeeds when there is none.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn remove(&self) -> io::Result<()> {
        match fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn file(&self) -> PathBuf {
        self.0.join("state.json")
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
        let state = State { sandbox_id: "abc".into(), shim: ProcessRef::own(), ..State::default() };
        assert!(state.shim.is_some());
        directory.save(&state).unwrap();
        assert_eq!(directory.load().unwrap(), Some(state));
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
