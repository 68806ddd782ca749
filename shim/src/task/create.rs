//! Makes a container: everything it needs in the machine, or nothing at all.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use oci_spec::runtime::Spec;
use ravelin_policy::{
    ContainerView, PodIdentity, PolicyConfig, Roots, check_container, classify, missing_root,
};
use ravelin_proto::agent::{CreateContainerRequest, NamespaceMode};
use tokio_util::sync::CancellationToken;

use super::{Container, Init};
use crate::apparmor;
use crate::cgroup::oom;
use crate::error::{TaskError, bounded};
use crate::extents::Held;
use crate::privileges::unrestricted;
use crate::rootfs::{RootfsMount, maps_ids};
use crate::sandbox::{ContainerLimits, Pod};
use crate::spec::{self, PidNamespace};
use crate::stdio::{Fifos, Io, Paths};
use crate::volumes::FoundVolumes;

/// What containerd asks for.
#[derive(Debug)]
pub struct Request {
    /// The container's id.
    pub id: String,
    /// Its bundle.
    pub bundle: String,
    /// Its root file system, as its snapshotter mounts it.
    pub rootfs: Vec<RootfsMount>,
    /// Its stdio.
    pub paths: Paths,
}

/// The pod's containers, by the numbers that containerd takes for their pids.
pub type Neighbours = BTreeMap<u32, String>;

/// The PID namespace a container gets, and the container whose it is if it is another's.
///
/// CRI names the namespace of the pod or of another container by a pid on the host: the sandbox's is the machine's, those
/// of containers are numbers of ours.
fn pid_namespace(
    pids: PidNamespace,
    machine: u32,
    neighbours: &Neighbours,
) -> Result<(NamespaceMode, String), TaskError> {
    match pids {
        PidNamespace::Own => Ok((NamespaceMode::Container, String::new())),
        PidNamespace::Host => Ok((NamespaceMode::Pod, String::new())),
        PidNamespace::Of(pid) if pid == machine => Ok((NamespaceMode::Pod, String::new())),
        PidNamespace::Of(pid) => match neighbours.get(&pid) {
            Some(target) => Ok((NamespaceMode::Target, target.clone())),
            None => Err(TaskError::FailedPrecondition(format!(
                "the container whose processes are to be joined is not in this pod (its spec names process {pid})"
            ))),
        },
    }
}

/// Judges a container by its spec, whose bounding set is written as `bounding`, and by what was found of its volumes.
///
/// # Errors
/// Everything that is not supported, in one message.
pub fn judge(
    spec: &Spec,
    bounding: &[String],
    found: &FoundVolumes,
    roots: &Roots,
    pod: &Pod,
    policy: &PolicyConfig,
) -> Result<(), TaskError> {
    let identity = PodIdentity { sandbox_id: &pod.sandbox_id, pod_uid: &pod.pod_uid, host_ipc: pod.host_ipc };
    let mut view = ContainerView::from_spec(spec, bounding);
    let violation = |source: &str| match found.get(source) {
        Some(found) => found.violation(source, policy),
        None => classify(source, identity, roots).violation(source, None, policy),
    };
    view.unsupported_volumes.extend(spec::host_mounts(spec).filter_map(|(_, source)| violation(source)));
    check_container(&view, policy).map_err(|refusal| {
        let missing =
            spec::host_mounts(spec).find_map(|(_, source)| missing_root(source, identity, roots));
        let way_around = match (missing, refusal.way_around()) {
            (Some((key, root)), _) => format!(
                " (if this node's {key} keeps its files in {root}, name that directory as well in {key} of [roots] in ravelin.toml)"
            ),
            (None, Some(way)) => format!(" ({way})"),
            (None, None) => String::new(),
        };
        TaskError::Refused(format!("{refusal}{way_around}"))
    })?;
    // A privileged container's spec can list every device of the node, which nobody asked for by name; it gets the guest's.
    match spec::devices(spec) {
        devices if devices.is_empty() || view.privileged => Ok(()),
        devices => Err(TaskError::Refused(format!(
            "devices of the node are not supported yet (raw block volumes, device plugins, CDI): {}",
            bounded(&devices.join(", "), 512)
        ))),
    }
}

/// Makes the container; on an error nothing of it stays.
///
/// `cancelled` is heard while images are made, which may take minutes, and at the end; what is asked of the guest has
/// deadlines of its own and is taken back when it has come.
///
/// # Errors
/// The policy's refusal, what could not be had, or that nobody wants the container any more.
pub async fn create(
    request: Request,
    pod: Arc<Pod>,
    policy: &PolicyConfig,
    neighbours: &Neighbours,
    cancelled: &CancellationToken,
) -> Result<Container, TaskError> {
    let (mut spec, bounding) = spec::load_container(Path::new(&request.bundle)).map_err(TaskError::failed)?;
    pod.roots.learn_containerd(Path::new(&request.bundle), &request.rootfs);
    pod.volumes.learn_kubelet(&spec).await.map_err(TaskError::failed)?;
    // What is judged by them is what is mounted, whatever another container's creation finds meanwhile.
    let roots = pod.roots.known();
    let sources: Vec<_> = spec::host_mounts(&spec).map(|(_, source)| source.to_owned()).collect();
    let found = pod.volumes.look(sources, &roots).await.map_err(TaskError::failed)?;
    judge(&spec, &bounding, &found, &roots, &pod, policy)?;
    if let Some(files) = &pod.files {
        files.mount(&mut spec);
    }
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().clone()).unwrap_or_default();
    let limits = ContainerLimits::default().changed_by(&resources).map_err(TaskError::failed)?;
    let fifos = Fifos::open(request.paths.clone()).await.map_err(TaskError::failed)?;
    let ids = fifos.ids(&pod.next_stream);
    let (pid_namespace, pid_target) =
        pid_namespace(spec::pid_namespace(&spec), pod.agent.machine().pid(), neighbours)?;
    if let Some(score) = spec.process().as_ref().and_then(|process| process.oom_score_adj()) {
        let machine = pod.agent.machine().pid();
        if let Err(error) = unrestricted("oom score", move || oom::lower(machine, score)).await {
            tracing::warn!(container = request.id, "the machine keeps its out-of-memory score: {error}");
        }
    }
    let profile = spec::apparmor_profile(&spec).map(str::to_owned);
    spec::strip_host(&mut spec);

    let policies = async {
        match &profile {
            Some(name) => apparmor::policies(name).await.map_err(TaskError::failed),
            None => Ok(Vec::new()),
        }
    };
    let layers = async {
        let layers = tokio::select! {
            biased;
            () = cancelled.cancelled() => return Err(called_off(&request.id)),
            layers = pod.layers.prepare(&request.rootfs) => layers.map_err(TaskError::failed)?,
        };
        pod.extents.hold(&pod.agent, &layers).await.map_err(TaskError::failed)
    };
    let volumes = async {
        pod.volumes.resolve(&request.id, &mut spec, &found, &roots).await.map_err(TaskError::failed)
    };
    let (layers, volumes, policies) = tokio::join!(layers, volumes, policies);
    let mut made = Made { pod: &pod, id: &request.id, layers: Vec::new(), in_guest: false };
    let outcome = async {
        made.layers = layers?;
        let mounts = volumes?;
        let message = CreateContainerRequest {
            container_id: request.id.clone(),
            spec: spec::encode(&spec).map_err(TaskError::failed)?.into(),
            layers: made.layers.iter().map(Held::id).collect(),
            mounts,
            stdio: Some(ids),
            pid_namespace: pid_namespace.into(),
            pid_target,
            apparmor_policies: policies?,
            map_layers: maps_ids(&request.rootfs),
        };
        if cancelled.is_cancelled() {
            return Err(called_off(&request.id));
        }
        // Only now: the agent closes a stream that no call names for two minutes, and to make the image of a large layer can
        // take longer.
        let io = fifos.connect(pod.agent.machine(), &ids).await.map_err(TaskError::failed)?;
        made.in_guest = true;
        let message = pod.agent.request(message);
        pod.agent.call("create a container", pod.agent.client().create_container(message)).await?;
        if cancelled.is_cancelled() {
            return Err(called_off(&request.id));
        }
        Ok::<Io, TaskError>(io)
    }
    .await;
    match outcome {
        Ok(io) => {
            let layers = std::mem::take(&mut made.layers);
            let init = Init { layers, limits, terminal: ids.terminal };
            Ok(Container::new(request, Arc::clone(&pod), init, io))
        }
        Err(error) => {
            made.undo().await;
            tracing::warn!(
                container = request.id,
                "cannot create a container: {}",
                bounded(&error.to_string(), 2048)
            );
            Err(error)
        }
    }
}

pub(super) fn called_off(id: &str) -> TaskError {
    TaskError::Failed(format!("the creation of the container {id} was called off"))
}

/// What has been made of a container so far.
struct Made<'a> {
    pod: &'a Pod,
    id: &'a str,
    layers: Vec<Held>,
    in_guest: bool,
}

impl Made<'_> {
    async fn undo(self) {
        if self.in_guest {
            // The agent may have come to its end although the answer did not come to us.
            super::remove_from_guest(self.pod, self.id, "").await;
        }
        self.pod.volumes.container_removed(self.id).await;
        self.pod.extents.release(&self.pod.agent, self.layers).await;
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::sandbox::testing::silent_pod;

    #[tokio::test]
    async fn a_container_whose_files_are_elsewhere_hears_which_directory_is_not_named() {
        let pod = silent_pod().await;
        let refusal = |source: &str| {
            let mount =
                json!({ "destination": "/x", "type": "bind", "source": source, "options": ["rbind"] });
            let spec = serde_json::from_value(json!({ "ociVersion": "1.1.0", "mounts": [mount] })).unwrap();
            judge(&spec, &[], &FoundVolumes::new(), &pod.roots.known(), &pod, &PolicyConfig::default())
                .unwrap_err()
                .to_string()
        };
        let words = "Pod not supported on Fargate: volumes not supported: ";
        let k3s = "/run/k3s/containerd/io.containerd.grpc.v1.cri/sandboxes/s/hostname";
        assert_eq!(
            refusal(k3s),
            format!(
                "{words}{k3s} is of an unsupported volume Type (if this node's containerd keeps its files in /run/k3s/containerd, name that directory as well in containerd of [roots] in ravelin.toml)"
            )
        );
        assert_eq!(refusal("/etc"), format!("{words}/etc is of an unsupported volume Type"));
    }

    #[test]
    fn a_pid_of_the_host_names_the_pods_namespace_or_another_containers() {
        let neighbours = Neighbours::from([(5_000_000, "a".into()), (5_000_001, "b".into())]);
        let joined = |pids| pid_namespace(pids, 77, &neighbours);
        assert_eq!(joined(PidNamespace::Own).unwrap(), (NamespaceMode::Container, String::new()));
        assert_eq!(joined(PidNamespace::Host).unwrap(), (NamespaceMode::Pod, String::new()));
        assert_eq!(joined(PidNamespace::Of(77)).unwrap(), (NamespaceMode::Pod, String::new()));
        assert_eq!(joined(PidNamespace::Of(5_000_001)).unwrap(), (NamespaceMode::Target, "b".into()));
        assert!(joined(PidNamespace::Of(1)).is_err());
    }
}
