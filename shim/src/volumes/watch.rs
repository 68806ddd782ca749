//! Keeps pushed volumes in step with the host.

use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use ravelin_policy::Roots;
use ravelin_proto::agent::PushVolumeRequest;
use rustix::fs::{AtFlags, OFlags, Stat, fstat, statat};
use rustix::io::Errno;
use sha2::{Digest, Sha256};
use tokio::sync::Mutex;

use super::{Shared, VolumeError, host, tree};
use crate::sync::{Cancelled, blocking, lock};

/// How often volumes are looked at.
const POLL: Duration = if cfg!(test) { Duration::from_millis(50) } else { Duration::from_secs(10) };
/// Largest push: the agent refuses more than 4 MiB.
const MAX_MESSAGE: usize = ravelin_proto::MAX_MESSAGE_BYTES - (64 << 10);

/// A volume whose content is copied into the guest.
#[derive(Debug)]
pub(super) struct Pushed {
    path: String,
    /// Its name in the guest.
    pub name: String,
    /// It follows the host.
    pub keep_in_step: bool,
    /// What the guest has; one push at a time.
    last: Mutex<Option<Last>>,
}

/// A push that was done.
#[derive(Debug)]
struct Last {
    digest: [u8; 32],
    stamp: Option<Stamp>,
}

impl Pushed {
    pub fn new(path: &str, keep_in_step: bool) -> Self {
        Self { path: path.to_owned(), name: Self::guest_name(path), keep_in_step, last: Mutex::default() }
    }

    /// A name for the guest that tells nothing about the host.
    pub fn guest_name(text: &str) -> String {
        use std::fmt::Write;
        Sha256::digest(text.as_bytes()).iter().take(16).fold("v-".to_owned(), |mut name, byte| {
            // Writing to a String cannot fail.
            let _ = write!(name, "{byte:02x}");
            name
        })
    }

    /// Makes sure that the guest has the volume.
    pub async fn bring(&self, shared: &Arc<Shared>) -> Result<(), VolumeError> {
        let mut last = self.last.lock().await;
        if last.is_some() && self.keep_in_step {
            return Ok(());
        }
        // What is not kept in step, a subPath, belongs to one container's mount. Its next incarnation finds what the
        // kubelet has bound there by then.
        let stamp = self.stamp(shared).await;
        self.push(shared, &mut last, stamp).await
    }

    /// Pushes the volume again if it has changed.
    async fn refresh(&self, shared: &Arc<Shared>) -> Result<(), VolumeError> {
        let mut last = self.last.lock().await;
        if !self.keep_in_step || last.is_none() {
            return Ok(());
        }
        let stamp = self.stamp(shared).await;
        if stamp.is_some() && last.as_ref().is_some_and(|last| last.stamp == stamp) {
            return Ok(());
        }
        self.push(shared, &mut last, stamp).await
    }

    async fn stamp(&self, shared: &Arc<Shared>) -> Option<Stamp> {
        let (path, shared) = (self.path.clone(), Arc::clone(shared));
        blocking(move || Ok::<_, Cancelled>(Stamp::of(&path, &shared.paths.roots.known())))
            .await
            .ok()
            .flatten()
    }

    /// Pushes what differs from what the guest has. `stamp` was taken before, so that no change is missed.
    async fn push(
        &self,
        shared: &Arc<Shared>,
        last: &mut Option<Last>,
        stamp: Option<Stamp>,
    ) -> Result<(), VolumeError> {
        let (path, paths) = (self.path.clone(), Arc::clone(shared));
        let tree = blocking(move || tree::read(&path, &paths.paths.roots.known())).await?;
        let request = PushVolumeRequest {
            volume: self.name.clone(),
            entries: tree.entries,
            single_file: tree.single_file,
            writable: false,
        };
        if request.encoded_len() > MAX_MESSAGE {
            return Err(VolumeError::Content {
                path: self.path.clone(),
                reason: format!("is larger than {} MiB with its names", MAX_MESSAGE >> 20),
            });
        }
        let digest: [u8; 32] = Sha256::digest(request.encode_to_vec()).into();
        if last.as_ref().is_none_or(|last| last.digest != digest) {
            shared.guest.push(&self.path, request).await?;
        }
        *last = Some(Last { digest, stamp });
        Ok(())
    }
}

/// What tells that a volume has changed without reading it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp {
    itself: Identity,
    /// The link that the kubelet's atomic writer replaces.
    data: Option<Identity>,
}

/// A file and its last change.
type Identity = (u64, u64, i64, u64);

impl Stamp {
    /// The stamp of a file or of a volume that is written atomically; of another directory only its content tells.
    fn of(path: &str, roots: &Roots) -> Option<Self> {
        let file = host::open(path, roots, OFlags::PATH).ok()?;
        let itself = identity(&fstat(&file).ok()?);
        let data = statat(&file, "..data", AtFlags::SYMLINK_NOFOLLOW);
        match data {
            Ok(data) => Some(Self { itself, data: Some(identity(&data)) }),
            Err(Errno::NOTDIR) => Some(Self { itself, data: None }),
            Err(_) => None,
        }
    }
}

fn identity(stat: &Stat) -> Identity {
    (stat.st_dev, stat.st_ino, stat.st_ctime, stat.st_ctime_nsec)
}

/// Pushes what changes, until it is aborted. The host is looked at, not asked to tell: it has few inotify instances, and a
/// pod without a volume of this kind is rare. The kubelet itself looks once a minute.
pub(super) async fn keep_in_step(shared: Arc<Shared>) {
    loop {
        tokio::time::sleep(POLL).await;
        let all: Vec<_> = lock(&shared.pushed).values().cloned().collect();
        for volume in all {
            match volume.refresh(&shared).await {
                Ok(()) => {}
                // The kubelet takes volumes away before the pod is gone.
                Err(VolumeError::Read { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => tracing::warn!("a volume is not up to date in the pod's machine: {error}"),
            }
        }
    }
}
