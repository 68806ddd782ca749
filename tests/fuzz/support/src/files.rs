//! Files of a test case, in memory and away from everybody else's.

use std::path::{Path, PathBuf};

/// A directory of this process's own on a file system in memory.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    /// An empty directory for the target `name`, where the environment's `FUZZ_SCRATCH` says.
    #[must_use]
    pub fn new(name: &str) -> Self {
        let root = std::env::var_os("FUZZ_SCRATCH").unwrap_or_else(|| "/dev/shm".into());
        let path = Path::new(&root).join(format!("ravelin-fuzz-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Writes a file in it and returns its path.
    #[must_use]
    pub fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }
}
