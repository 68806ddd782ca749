use std::fmt::Write;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, StatxFlags, fstatfs, statx};
use sha2::{Digest, Sha256};

use super::RootfsError;

/// Changes whenever images are made in another way, so that none of the old ones is used.
const FORMAT: &[u8] = b"ravelin layer 2";

/// linux/magic.h
const FUSE: i64 = 0x6573_5546;

/// What names a snapshot directory for good: not only its path, which may be used again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    /// The directory, without symbolic links.
    pub path: PathBuf,
    /// Names the image; hexadecimal.
    pub key: String,
}

pub(super) fn identify(directory: &Path) -> Result<Identity, RootfsError> {
    let failed = |source| RootfsError::Source { path: directory.to_owned(), source };
    let path = directory.canonicalize().map_err(failed)?;
    let file = File::open(&path).map_err(failed)?;
    let system = fstatfs(&file).map_err(|errno| failed(errno.into()))?;
    judge(directory, system.f_type)?;
    of(path, &file).map_err(failed)
}

/// Refuses a directory for the type of its file system (statfs(2)).
fn judge(directory: &Path, file_system: i64) -> Result<(), RootfsError> {
    // Its content comes when it is read: an image of it would fetch all that the snapshotter is there to leave where it is.
    if file_system == FUSE {
        return Err(RootfsError::NotSupported(format!(
            "a layer that a remote snapshotter serves through FUSE ({}); use the overlayfs or native snapshotter",
            directory.display()
        )));
    }
    Ok(())
}

fn of(path: PathBuf, file: &File) -> io::Result<Identity> {
    let wanted = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
    let stat = statx(file, "", AtFlags::EMPTY_PATH, wanted)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_on_fuse_is_refused() {
        let layer = Path::new("/s/1/fs");
        let error = judge(layer, 0x6573_5546).unwrap_err().to_string();
        let words = "not supported yet: a layer that a remote snapshotter serves through FUSE (/s/1/fs)";
        assert!(error.starts_with(words), "{error}");
        // ext4, XFS, overlayfs, EROFS.
        for other in [0xef53, 0x5846_5342, 0x794c_7630, 0xe0f5_e1e2] {
            judge(layer, other).unwrap();
        }
    }
}
