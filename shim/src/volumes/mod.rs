//! A container's volumes: what stands in the guest behind the bind mounts of its OCI spec.
//!
//! Host paths are judged by [`ravelin_policy::classify`] and opened below the kubelet's and containerd's directories
//! without following symbolic links. ConfigMaps, secrets, tokens and the pod's files are copied into the guest and
//! kept in step; emptyDirs live in the guest alone; the termination log is carried back when its container ends. What the kubelet has
//! mounted for the pod is served to the guest, where it is.
//! The guest never names a path of the host.

mod files;
mod guest;
mod host;
mod resolve;
mod roots;
mod subpath;
mod termination;
#[cfg(test)]
mod tests;
mod tree;
mod watch;

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex};

use oci_spec::runtime::Spec;
use ravelin_policy::{PodIdentity, PolicyConfig, Roots, VolumeKind, classify};
use ravelin_proto::agent::MountSource;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use crate::error::bounded;
use crate::sync::{Cancelled, blocking, lock};

pub use files::{Directory, Found, FoundVolumes, Identity, Serve};
pub use guest::Guest;
use resolve::Resolver;
pub use roots::NodeRoots;
use termination::TerminationLog;
use watch::Pushed;

/// Most looks at the node's file systems at a time, for one pod.
const PLACES: usize = 4;

/// A volume that could not be brought into the guest.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// Something that is not done yet.
    #[error("not supported yet: {0}")]
    NotSupported(String),
    /// A path that is not the pod's to mount.
    #[error("the host path {0} is not a volume of this pod")]
    Refused(String),
    /// A path of the host's could not be read.
    #[error("cannot read the volume {path}")]
    Read {
        /// The host path.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Content that cannot be pushed.
    #[error("the volume {path} {reason}")]
    Content {
        /// The host path.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The agent did not take the volume.
    #[error("cannot bring the volume {path} into the pod's machine: {message}")]
    Push {
        /// The host path.
        path: String,
        /// The agent's words, bounded.
        message: String,
    },
    /// The file server did not take the volume.
    #[error("cannot serve the volume {path} to the pod's machine: {message}")]
    Serve {
        /// The host path.
        path: String,
        /// Why.
        message: String,
    },
    /// The node did not come to an end with it.
    #[error(
        "cannot read the volume {path}: the node had no answer within {seconds} s (does its file system's server, or its disk, respond?)"
    )]
    Silent {
        /// The host path.
        path: String,
        /// How long it had.
        seconds: u64,
    },
    /// Others of the pod's volumes do not answer.
    #[error(
        "cannot read the volume {path}: {PLACES} looks at other volumes of the pod have had no answer from the node within {seconds} s (do their file systems' servers respond?)"
    )]
    Busy {
        /// The host path.
        path: String,
        /// How long it had.
        seconds: u64,
    },
    /// The shim is ending.
    #[error("the work on volumes was cut short")]
    Cancelled(#[from] Cancelled),
}

/// The names and places by which the pod's own paths are known.
#[derive(Debug)]
pub struct PodPaths {
    /// containerd's id of the sandbox.
    pub sandbox_id: String,
    /// Kubernetes's UID of the pod; may be empty.
    pub pod_uid: String,
    /// The pod was allowed `hostIPC`.
    pub host_ipc: bool,
    /// Where the kubelet and containerd keep pods' files.
    pub roots: Arc<NodeRoots>,
    /// What the pod may mount of the node.
    pub policy: PolicyConfig,
}

impl PodPaths {
    fn classify(&self, path: &str, roots: &Roots) -> VolumeKind {
        let pod =
            PodIdentity { sandbox_id: &self.sandbox_id, pod_uid: &self.pod_uid, host_ipc: self.host_ipc };
        classify(path, pod, roots)
    }
}

/// The volumes of one pod.
#[derive(Debug)]
pub struct PodVolumes {
    shared: Arc<Shared>,
    watcher: Mutex<Option<JoinHandle<()>>>,
}

/// What the watcher shares with requests.
struct Shared {
    guest: Guest,
    server: Arc<dyn Serve>,
    paths: PodPaths,
    /// Pushed volumes by host path.
    pushed: Mutex<HashMap<String, Arc<Pushed>>>,
    /// For work that may wait for a file system of the network for ever: it is not to take all of the shim's threads.
    places: Arc<Semaphore>,
    /// Termination logs by container, open since the container's creation.
    logs: Mutex<HashMap<String, Vec<TerminationLog>>>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("paths", &self.paths).finish_non_exhaustive()
    }
}

impl Shared {
    /// Work on the node's files, which may never come to an end where a server of the network does not answer. `path` is named in the
    /// error.
    async fn of_the_node<T: Send + 'static>(
        &self,
        path: &str,
        work: impl FnOnce() -> Result<T, VolumeError> + Send + 'static,
    ) -> Result<T, VolumeError> {
        let patience = self.guest.deadline();
        let (path, seconds) = (bounded(path, 512), patience.as_secs());
        let place = tokio::time::timeout(patience, Arc::clone(&self.places).acquire_owned()).await;
        let place =
            place.map_err(|_| VolumeError::Busy { path: path.clone(), seconds })?.map_err(|_| Cancelled)?;
        let work = move || {
            // Held by the work, also when nobody waits for it any more.
            let _place = place;
            work()
        };
        let done = tokio::time::timeout(patience, blocking(work)).await;
        done.map_err(|_| VolumeError::Silent { path, seconds })?
    }
}

impl PodVolumes {
    /// The volumes of a pod whose agent is reached through `guest`, and whose file volumes `server` serves. Must be called inside a
    /// tokio runtime.
    pub fn new(guest: Guest, server: Arc<dyn Serve>, paths: PodPaths) -> Self {
        let (pushed, logs) = (Mutex::default(), Mutex::default());
        let places = Arc::new(Semaphore::new(PLACES));
        let shared = Arc::new(Shared { guest, server, paths, pushed, places, logs });
        Self { shared, watcher: Mutex::default() }
    }

    /// Learns where the kubelet keeps pods' files, from what it mounts into a container.
    ///
    /// # Errors
    /// When the node has no answer in time.
    pub async fn learn_kubelet(&self, spec: &Spec) -> Result<(), VolumeError> {
        let PodPaths { roots, pod_uid, policy, .. } = &self.shared.paths;
        let Some(root) = roots.kubelet_by(spec, pod_uid, policy) else { return Ok(()) };
        let (shared, of) = (Arc::clone(&self.shared), root.clone());
        let learn = move || {
            shared.paths.roots.learn_kubelet(of, &shared.paths.pod_uid);
            Ok(())
        };
        self.shared.of_the_node(&root, learn).await
    }

    /// Finds what is mounted from those of these host paths that do not tell. `roots` are those by which the container is judged.
    ///
    /// # Errors
    /// Names the path that leads nowhere, or for which the node has no answer in time.
    pub async fn look(
        &self,
        host_paths: impl IntoIterator<Item = String>,
        roots: &Arc<Roots>,
    ) -> Result<FoundVolumes, VolumeError> {
        let mut all = FoundVolumes::new();
        for path in host_paths {
            if !files::has_to_be_found(&self.shared.paths.classify(&path, roots)) {
                continue;
            }
            let (shared, roots, of) = (Arc::clone(&self.shared), Arc::clone(roots), path.clone());
            let found =
                self.shared.of_the_node(&path, move || files::look(&of, &shared.paths, &roots)).await?;
            all.extend(found.map(|found| (path, found)));
        }
        Ok(all)
    }

    /// Brings what a container mounts from the host into the guest and tells what stands behind each mount. Takes the
    /// host's paths out of the spec. `found` is what [`PodVolumes::look`] has found of them
    /// by the same `roots`.
    ///
    /// # Errors
    /// Names the host path and what is wrong with it.
    pub async fn resolve(
        &self,
        container_id: &str,
        spec: &mut Spec,
        found: &FoundVolumes,
        roots: &Arc<Roots>,
    ) -> Result<Vec<MountSource>, VolumeError> {
        let mut mounts = spec.mounts_mut().take().unwrap_or_default();
        let resolver = Resolver { shared: &self.shared, container_id, found, roots };
        let sources = resolver.resolve(&mut mounts).await;
        spec.set_mounts(Some(mounts));
        let sources = sources?;
        if lock(&self.shared.pushed).values().any(|pushed| pushed.keep_in_step) {
            let mut watcher = lock(&self.watcher);
            if watcher.is_none() {
                *watcher = Some(tokio::spawn(watch::keep_in_step(Arc::clone(&self.shared))));
            }
        }
        Ok(sources)
    }

    /// Carries the container's termination log back to the host; to be called before its exit is made known.
    pub async fn container_exited(&self, container_id: &str) {
        let logs = lock(&self.shared.logs).remove(container_id).unwrap_or_default();
        for log in logs {
            if let Err(error) = log.carry_back(&self.shared.guest).await {
                tracing::warn!(container = container_id, "cannot carry the termination log back: {error}");
            }
        }
    }

    /// Forgets the container, and what it never had the time to say.
    pub async fn container_removed(&self, container_id: &str) {
        let logs = lock(&self.shared.logs).remove(container_id).unwrap_or_default();
        for log in logs {
            log.drop_from(&self.shared.guest).await;
        }
    }

    /// Stops watching; also done when this is dropped.
    pub fn close(&self) {
        if let Some(watcher) = lock(&self.watcher).take() {
            watcher.abort();
        }
    }
}

impl Drop for PodVolumes {
    fn drop(&mut self) {
        self.close();
    }
}
