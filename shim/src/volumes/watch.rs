//! Keeps pushed volumes in step with the host.

use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use prost::Message;
use ravelin_proto::agent::PushVolumeRequest;
use rustix::fs::OFlags;
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use sha2::{Digest, Sha256};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Mutex;

use super::{Shared, VolumeError, host, tree};
use crate::sync::{blocking, lock};

/// Changes come in bursts; they are waited out this long.
const SETTLE: Duration = Duration::from_millis(100);
/// Pause before a push that failed is tried again.
const RETRY: Duration = Duration::from_secs(5);
/// How often volumes are looked at where the host has no inotify instance to spare.
const POLL: Duration = Duration::from_secs(15);
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
    /// Digest of what the guest has; one push at a time.
    last: Mutex<Option<[u8; 32]>>,
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
        if self.keep_in_step {
            // Before the content is read, so that no change is missed.
            shared.changes.watch(&self.path, shared);
        }
        self.push(shared, &mut last).await
    }

    /// Pushes the volume again if it has changed.
    async fn refresh(&self, shared: &Arc<Shared>) -> Result<(), VolumeError> {
        let mut last = self.last.lock().await;
        if !self.keep_in_step || last.is_none() {
            return Ok(());
        }
        shared.changes.watch(&self.path, shared);
        self.push(shared, &mut last).await
    }

    async fn push(&self, shared: &Arc<Shared>, last: &mut Option<[u8; 32]>) -> Result<(), VolumeError> {
        let (path, paths) = (self.path.clone(), Arc::clone(shared));
        let tree = blocking(move || tree::read(&path, &paths.paths.roots)).await?;
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
        if *last != Some(digest) {
            shared.guest.push(&self.path, request).await?;
            *last = Some(digest);
        }
        Ok(())
    }
}

/// The host's word that something has changed.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// Made for the first volume that can change: the host has few (`fs.inotify.max_user_instances`). `None` where it has none
    /// to spare.
    inotify: OnceLock<Option<AsyncFd<OwnedFd>>>,
}

impl Changes {
    /// Must be called inside a tokio runtime.
    fn inotify(&self) -> Option<&AsyncFd<OwnedFd>> {
        self.inotify.get_or_init(Self::start).as_ref()
    }

    fn start() -> Option<AsyncFd<OwnedFd>> {
        inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)
            .map_err(std::io::Error::from)
            .and_then(|fd| {
                // SAFETY: the AsyncFd owns the descriptor, which nobody else closes, and an OwnedFd never changes its
                // number.
                unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }.map_err(Into::into)
            })
            .inspect_err(|error| {
                tracing::warn!("volumes are polled, for want of an inotify instance: {error}");
            })
            .ok()
    }

    /// Watches a directory or file; watching it again changes nothing, unless another file has taken its place.
    fn watch(&self, path: &str, shared: &Shared) {
        let Some(inotify) = self.inotify() else { return };
        let flags = WatchFlags::MODIFY
            | WatchFlags::CLOSE_WRITE
            | WatchFlags::ATTRIB
            | WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO
            | WatchFlags::MOVE_SELF
            | WatchFlags::DELETE_SELF;
        let watched = host::open(path, &shared.paths.roots, OFlags::PATH).and_then(|file| {
            // The very file that was opened, whatever its path leads to by now.
            let opened = format!("/proc/self/fd/{}", file.as_raw_fd());
            Ok(inotify::add_watch(inotify.get_ref(), opened, flags)?)
        });
        if let Err(error) = watched {
            tracing::debug!(path, "cannot watch a volume: {error}");
        }
    }

    /// Waits for the next change.
    async fn next(&self) {
        let Some(inotify) = self.inotify() else {
            tokio::time::sleep(POLL).await;
            return;
        };
        let read = inotify.async_io(Interest::READABLE, |fd| {
            let mut buffer = [MaybeUninit::uninit(); 4096];
            // Which file it was does not matter: all are compared with what the guest has.
            inotify::Reader::new(fd, &mut buffer).next().map(drop).map_err(Into::into)
        });
        if read.await.is_err() {
            tokio::time::sleep(POLL).await;
        }
    }
}

/// Pushes what changes, until it is aborted.
pub(super) async fn keep_in_step(shared: Arc<Shared>) {
    let mut failed = false;
    loop {
        if failed {
            let _ = tokio::time::timeout(RETRY, shared.changes.next()).await;
        } else {
            shared.changes.next().await;
        }
        // Until it has been quiet for a moment, but not for ever.
        for _ in 0..10 {
            if tokio::time::timeout(SETTLE, shared.changes.next()).await.is_err() {
                break;
            }
        }
        failed = false;
        let all: Vec<_> = lock(&shared.pushed).values().cloned().collect();
        for volume in all {
            match volume.refresh(&shared).await {
                Ok(()) => {}
                // The kubelet takes volumes away before the pod is gone.
                Err(VolumeError::Read { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => {
                    tracing::warn!("a volume is not up to date in the pod's machine: {error}");
                    failed |= matches!(error, VolumeError::Push { .. });
                }
            }
        }
    }
}
