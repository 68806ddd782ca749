//! Fifos for tests.

use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, mknodat};

/// Makes a fifo; gives its path.
pub fn fifo(directory: &Path, name: &str) -> String {
    let path = directory.join(name);
    mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    path.to_str().unwrap().to_owned()
}
