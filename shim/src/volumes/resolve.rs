use std::path::{Path, PathBuf};
use std::sync::Arc;

use oci_spec::runtime::Mount;
use ravelin_policy::{PushedKind, Roots, Unsupported, VolumeKind};
use ravelin_proto::agent::mount_source::Source;
use ravelin_proto::agent::{Empty, EmptyDir, FileVolume, MountSource, PushedVolume};

use super::termination::TerminationLog;
use super::watch::Pushed;
use super::{Found, FoundVolumes, Shared, VolumeError, files, host};
use crate::error::bounded;
use crate::privileges::unrestricted;
use crate::spec::is_bind;
use crate::sync::{blocking, lock};

/// Resolves the mounts of one container.
pub(super) struct Resolver<'a> {
    pub shared: &'a Arc<Shared>,
    pub container_id: &'a str,
    pub found: &'a FoundVolumes,
    /// The roots by which the container was judged.
    pub roots: &'a Arc<Roots>,
}

impl Resolver<'_> {
    /// Finds out what stands behind each bind mount, blanks its source.
    pub async fn resolve(&self, mounts: &mut [Mount]) -> Result<Vec<MountSource>, VolumeError> {
        let mut sources = Vec::new();
        for (index, mount) in mounts.iter_mut().enumerate() {
            if !is_bind(mount) {
                continue;
            }
            let path = match mount.source().as_deref().map(Path::to_str) {
                Some(Some(path)) if !path.is_empty() => path.to_owned(),
                Some(None) => return Err(VolumeError::Refused(format!("{:?}", mount.source()))),
                _ => continue,
            };
            let source = self.source(index, &path).await?;
            mount.set_source(Some(PathBuf::new()));
            sources.push(MountSource {
                spec_index: u32::try_from(index).unwrap_or(u32::MAX),
                source: Some(source),
            });
        }
        Ok(sources)
    }

    async fn source(&self, index: usize, path: &str) -> Result<Source, VolumeError> {
        match self.shared.paths.classify(path, self.roots) {
            // containerd writes these two once, before the pod starts.
            VolumeKind::Pushed { kind: PushedKind::Hostname | PushedKind::ResolvConf, .. } => {
                self.push(path, false).await
            }
            VolumeKind::Pushed { .. } => self.push(path, true).await,
            VolumeKind::EmptyDir { name } => self.empty_dir(path, name, String::new()).await,
            VolumeKind::SubPath { .. } => self.sub_path(path).await,
            VolumeKind::TerminationLog => self.termination_log(index, path).await,
            VolumeKind::Shm => Ok(Source::Shm(Empty {})),
            // Whether the pod may have it was judged before, as was that of a subPath.
            VolumeKind::File { .. } => {
                let volume = self.served(path.to_owned(), Arc::clone(self.roots), false).await?;
                Ok(Source::FileVolume(volume))
            }
            VolumeKind::Image { sub_path, .. } => {
                let whole = path.strip_suffix(&sub_path).unwrap_or(path).trim_end_matches('/');
                let volume = self.served(whole.to_owned(), Arc::clone(self.roots), true).await?;
                // containerd lays the layers with the mapping of the pod's user namespace over one another.
                Ok(Source::FileVolume(FileVolume { sub_path, mapped: true, ..volume }))
            }
            // Writable also where the root is read-only; what is written goes to the container's own writable layer.
            VolumeKind::ImageDeclared => Ok(Source::OwnDirectory(Empty {})),
            VolumeKind::Unsupported(Unsupported::HostPath) => self.host_path(path).await,
            VolumeKind::Unsupported(_) => Err(VolumeError::Refused(path.to_owned())),
        }
    }

    /// Pushes a tree or file, once for all containers that mount it.
    async fn push(&self, path: &str, keep_in_step: bool) -> Result<Source, VolumeError> {
        let pushed = {
            let mut all = lock(&self.shared.pushed);
            Arc::clone(
                all.entry(path.to_owned()).or_insert_with(|| Arc::new(Pushed::new(path, keep_in_step))),
            )
        };
        pushed.bring(self.shared).await?;
        Ok(Source::Pushed(PushedVolume { volume: pushed.name.clone(), sub_path: String::new() }))
    }

    async fn empty_dir(&self, path: &str, name: String, sub_path: String) -> Result<Source, VolumeError> {
        let (path, roots) = (path.to_owned(), Arc::clone(self.roots));
        let facts = blocking(move || host::empty_dir(&path, &roots)).await?;
        Ok(Source::EmptyDir(EmptyDir {
            name,
            mode: facts.mode,
            uid: facts.uid,
            gid: facts.gid,
            memory: facts.memory.is_some(),
            size_bytes: facts.memory.unwrap_or(0),
            sub_path,
        }))
    }

    /// A part of a volume, which the kubelet has bound to a path of its own. A part of an emptyDir or a file volume is found in the
    /// guest; a part of pushed content is pushed by itself and, as Kubernetes has it, changes only when its container is made anew.
    async fn sub_path(&self, path: &str) -> Result<Source, VolumeError> {
        let refused = || VolumeError::Refused(path.to_owned());
        let Found { kind, whole, sub_path, .. } = self.found.get(path).ok_or_else(refused)?;
        match kind {
            VolumeKind::EmptyDir { name } => self.empty_dir(whole, name.clone(), sub_path.clone()).await,
            VolumeKind::File { .. } => {
                let roots = Arc::clone(self.roots);
                let volume = self.served(whole.clone(), roots, false).await?;
                Ok(Source::FileVolume(FileVolume { sub_path: sub_path.clone(), ..volume }))
            }
            VolumeKind::Pushed { .. } => self.push(path, false).await,
            _ => Err(refused()),
        }
    }

    /// A directory of the node that the policy grants to pods; it may lie behind symbolic links, and what the pod names below it
    /// may not.
    async fn host_path(&self, path: &str) -> Result<Source, VolumeError> {
        let granted = self.shared.paths.policy.host_path(path);
        let granted = granted.ok_or_else(|| VolumeError::Refused(path.to_owned()))?;
        // The configuration was checked for those that it could know.
        let near = |root: &&String| {
            let (root, granted) = (Path::new(root), Path::new(&granted.path));
            root.starts_with(granted) || granted.starts_with(root)
        };
        if let Some(root) = self.roots.kubelet.iter().chain(&self.roots.containerd).find(near) {
            let reason = format!(
                "is granted by {} of host_paths in ravelin.toml, which must be apart from {root}: that holds what is other pods'",
                granted.path
            );
            return Err(VolumeError::Content { path: path.to_owned(), reason });
        }
        let below = Arc::new(Roots { kubelet: vec![granted.path.clone()], containerd: Vec::new() });
        Ok(Source::FileVolume(self.served(path.to_owned(), below, !granted.writable).await?))
    }

    /// A directory that is served to the guest, found below one of `roots`.
    async fn served(
        &self,
        path: String,
        roots: Arc<Roots>,
        read_only: bool,
    ) -> Result<FileVolume, VolumeError> {
        let whole = path.clone();
        let directory =
            self.shared.of_the_node(&path, move || files::open(&whole, &roots, read_only)).await?;
        let number = self.shared.server.serve(directory).await;
        let number = number.map_err(|message| VolumeError::Serve { path, message })?;
        Ok(FileVolume { number, sub_path: String::new(), mapped: false })
    }

    async fn termination_log(&self, index: usize, path: &str) -> Result<Source, VolumeError> {
        let (owned, roots) = (path.to_owned(), Arc::clone(self.roots));
        let name = Pushed::guest_name(&format!("{}/{index}", self.container_id));
        let open = move || TerminationLog::open(&owned, name, &roots);
        let patience = self.shared.guest.deadline();
        let opened = tokio::time::timeout(patience, unrestricted("termination-log", open)).await;
        let (log, request) = opened
            .map_err(|_| VolumeError::Silent { path: bounded(path, 512), seconds: patience.as_secs() })??;
        self.shared.guest.push(path, request).await?;
        let volume = log.volume.clone();
        lock(&self.shared.logs).entry(self.container_id.to_owned()).or_default().push(log);
        Ok(Source::Pushed(PushedVolume { volume, sub_path: String::new() }))
    }
}
