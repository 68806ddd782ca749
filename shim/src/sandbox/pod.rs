//! A pod whose agent answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use ravelin_proto::agent::{Empty, event};

use super::file_server::{FileServer, Settings};
use super::files::PodFiles;
use super::plan::Plan;
use super::supervisor::Supervisor;
use crate::agent::Agent;
use crate::config::Config;
use crate::extents::Extents;
use crate::rootfs::LayerStore;
use crate::volumes::{Guest, NodeRoots, PodPaths, PodVolumes};

/// Pids of 64-bit Linux are below this (`PID_MAX_LIMIT`).
const PID_MAX_LIMIT: u32 = 1 << 22;

/// A pod whose agent answers: what its containers are made with.
#[derive(Debug)]
pub struct Pod {
    /// containerd's id of the sandbox.
    pub sandbox_id: String,
    /// Kubernetes's UID of the pod; may be empty.
    pub pod_uid: String,
    /// The pod may have the guest's IPC objects for the host's.
    pub host_ipc: bool,
    /// Where the kubelet and containerd keep what they make for pods.
    pub roots: Arc<NodeRoots>,
    /// The files that containerd does not make for it.
    pub files: Option<PodFiles>,
    /// The agent.
    pub agent: Agent,
    /// Who ends the machine.
    pub supervisor: Supervisor,
    /// The layers disk.
    pub extents: Extents,
    /// Images of layers on this node.
    pub layers: LayerStore,
    /// The pod's volumes.
    pub volumes: PodVolumes,
    /// Who serves its file volumes.
    pub(super) file_server: Arc<FileServer>,
    /// Time to write them out at the pod's end.
    pub(super) sync_deadline: Duration,
    /// The next stdio stream's id.
    pub next_stream: AtomicU64,
    next_pid: AtomicU32,
}

impl Pod {
    pub(super) fn new(plan: &Plan, config: &Config, agent: Agent, supervisor: Supervisor) -> Self {
        let settings = Settings {
            program: config.fs.path.clone(),
            cgroups_path: plan.cgroups_path.clone(),
            sandbox_id: plan.sandbox_id.clone(),
            deadline: config.call_deadline(),
        };
        let roots = Arc::new(NodeRoots::new(&config.roots));
        let file_server = Arc::new(FileServer::new(settings, agent.machine().clone()));
        Self {
            sandbox_id: plan.sandbox_id.clone(),
            pod_uid: plan.pod_uid.clone(),
            host_ipc: plan.host_ipc,
            roots: Arc::clone(&roots),
            files: plan.files.clone(),
            volumes: PodVolumes::new(
                Guest::new(agent.client(), config.call_deadline()),
                Arc::clone(&file_server) as Arc<_>,
                PodPaths {
                    sandbox_id: plan.sandbox_id.clone(),
                    pod_uid: plan.pod_uid.clone(),
                    host_ipc: plan.host_ipc,
                    roots,
                    policy: config.policy.clone(),
                },
            ),
            file_server,
            sync_deadline: config.sync_deadline(),
            extents: Extents::default(),
            layers: LayerStore::new(config.layers_dir(), config.layer_deadline()),
            // 0 means none.
            next_stream: AtomicU64::new(1),
            next_pid: AtomicU32::new(PID_MAX_LIMIT + 1),
            agent,
            supervisor,
        }
    }

    /// A number for containerd to take for a container's pid.
    ///
    /// A pod's processes have no pids on the host, and the machine's stands for the sandbox. Each container gets a number
    /// of its own, because CRI names by it the container whose processes another one joins; it is one that no process of
    /// the host can have, so that nobody signals, traces or enters a stranger by it.
    #[must_use]
    pub fn take_pid(&self) -> u32 {
        self.next_pid.fetch_add(1, Ordering::Relaxed)
    }

    /// Calls `oom` for every container in which the guest's kernel kills for memory, until the machine ends.
    pub async fn watch_oom(&self, oom: impl Fn(&str)) {
        while self.agent.machine().exited().is_none() {
            let mut client = self.agent.long_client();
            if let Ok(events) = client.events(Empty {}).await {
                let mut events = events.into_inner();
                while let Ok(Some(event)) = events.message().await {
                    if let Some(event::Kind::Oom(event)) = event.kind {
                        oom(&event.container_id);
                    }
                }
            }
            tokio::select! {
                _ = self.agent.machine().wait() => {}
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
            }
        }
    }
}
