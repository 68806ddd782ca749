use std::fmt::Write;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, StatxFlags, statx};
use sha2::{Digest, Sha256};

use super::RootfsError;

/// Changes whenever images are made in another way, so that none of the old ones is used.
const FORMAT: &[u8] = b"ravelin layer 2";

/// What names a snapshot directory for good: not only its path, which may be used again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    /// The directory, without symbolic links.
    pub path: PathBuf,
    /// Names the image; hexadecimal.
    pub key: String,
}

pub(super) fn identify(directory: &Path) -> Result<Identity, RootfsError> {
    of(directory).map_err(|source| RootfsError::Source { path: directory.to_owned(), source })
}

fn of(directory: &Path) -> io::Result<Identity> {
    let path = directory.canonicalize()?;
    let file = File::open(&path)?;
    let wanted = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
    let stat = statx(&file, "", AtFlags::EMPTY_PATH, wanted)?;
    if u32::from(stat.stx_mode) & libc::S_IFMT != libc::S_IFDIR {
        return Err(io::ErrorKind::NotADirectory.into());
    }
    let mut hash = Sha256::new();
    hash.update(FORMAT);
    for number in [u64::from(stat.stx_dev_major), u64::from(stat.stx_dev_minor), stat.stx_ino] {
        hash.update(number.to_le_bytes());
    }
    for time in [stat.stx_btime, stat.stx_ctime] {
        hash.update(time.tv_sec.to_le_bytes());
        hash.update(time.tv_nsec.to_le_bytes());
    }
    hash.update(path.as_os_str().as_bytes());
    Ok(Identity { key: hex(hash.finalize().iter().take(20)), path })
}

pub(super) fn hex<'a>(bytes: impl Iterator<Item = &'a u8>) -> String {
    bytes.fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
