//! The record beside each cached image: where it came from, and whether it is known to be on the disk whole.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// A cached image's record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    /// The host's boot during which the image was made.
    pub boot: String,
    /// The image's data has reached the disk. Before that it counts only until the host's next boot, so that a power
    /// cut cannot leave half an image.
    pub synced: bool,
    /// The snapshot directory.
    pub source: PathBuf,
}

impl Record {
    pub fn read(path: &Path) -> io::Result<Self> {
        parse(&fs::read(path)?).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Writes the record in place of an older one, whole or not at all.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let temporary = path.with_extension("record-new");
        let mut file = fs::File::create(&temporary)?;
        writeln!(file, "{}\n{}", self.boot, if self.synced { "synced" } else { "written" })?;
        file.write_all(self.source.as_os_str().as_bytes())?;
        fs::rename(&temporary, path)
    }

    /// Whether the image may be used.
    pub fn is_valid(&self) -> bool {
        self.synced || self.boot == boot_id()
    }
}

fn parse(bytes: &[u8]) -> Option<Record> {
    let mut parts = bytes.splitn(3, |byte| *byte == b'\n');
    let boot = std::str::from_utf8(parts.next()?).ok()?.to_owned();
    let synced = match parts.next()? {
        b"synced" => true,
        b"written" => false,
        _ => return None,
    };
    let source = PathBuf::from(OsStr::from_bytes(parts.next()?));
    (!boot.is_empty() && source.is_absolute()).then_some(Record { boot, synced, source })
}

/// Names the host's current boot.
pub(super) fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned()).unwrap_or_default()
}
