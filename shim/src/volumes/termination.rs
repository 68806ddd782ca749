use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};

use ravelin_policy::Roots;
use ravelin_proto::agent::volume_entry::Content;
use ravelin_proto::agent::{PushVolumeRequest, VolumeEntry};
use rustix::fs::{FileType, OFlags, fstat};

use super::guest::Guest;
use super::{VolumeError, host};
use crate::sync::blocking;

/// Most that is carried back, of its end; the kubelet reads the last 4 KiB.
const MAX_BYTES: u32 = 64 << 10;

/// The file on the host in which the kubelet looks for a container's last words, held open from the container's
/// creation to its end: by then nobody could have put another file in its place.
#[derive(Debug)]
pub(super) struct TerminationLog {
    path: String,
    pub volume: String,
    file: File,
}

impl TerminationLog {
    /// Opens the host's file and tells what to push for it. Blocks.
    pub fn open(path: &str, volume: String, roots: &Roots) -> Result<(Self, PushVolumeRequest), VolumeError> {
        let failed = |source| VolumeError::Read { path: path.to_owned(), source };
        let mut file = host::open(path, roots, OFlags::RDWR).map_err(failed)?;
        let stat = fstat(&file).map_err(|errno| failed(errno.into()))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file")));
        }
        let mut content = Vec::new();
        (&mut file).take(u64::from(MAX_BYTES)).read_to_end(&mut content).map_err(failed)?;
        let entry = VolumeEntry {
            path: String::new(),
            mode: host::permissions(&stat),
            uid: stat.st_uid,
            gid: stat.st_gid,
            content: Some(Content::File(content.into())),
        };
        let request = PushVolumeRequest {
            volume: volume.clone(),
            entries: vec![entry],
            single_file: true,
            writable: true,
        };
        Ok((Self { path: path.to_owned(), volume, file }, request))
    }

    /// Takes the guest's file away unread: its container has not come to be.
    pub async fn drop_from(self, guest: &Guest) {
        // A guest that does not answer is about to end.
        let _ = guest.take(&self.path, &self.volume, 0).await;
    }

    /// Writes what the container left in the guest's file into the host's.
    pub async fn carry_back(mut self, guest: &Guest) -> Result<(), VolumeError> {
        let data = guest.take(&self.path, &self.volume, MAX_BYTES).await?;
        blocking(move || {
            let written = self
                .file
                .seek(SeekFrom::Start(0))
                .and_then(|_| self.file.set_len(0))
                .and_then(|()| self.file.write_all(&data));
            written.map_err(|source| VolumeError::Read { path: self.path, source })
        })
        .await
    }
}
