//! What a container uses, as the guest tells it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use containerd_shim_protos::cgroups_v2::metrics::Metrics;
use ravelin_proto::agent::ContainerRequest;

use super::Container;
use crate::agent::AgentError;
use crate::error::TaskError;
use crate::sandbox::supervisor::deadline;
use crate::stats;
use crate::sync::lock;

impl Container {
    /// The container's counters; of one that has ended, what is left of them. A guest that does not answer at once is not
    /// waited for: containerd asks one container of the node after another. Its last counters are given; of a container
    /// that was never asked about, which has just been started, nothing is known to have been used.
    ///
    /// # Errors
    /// When the guest refuses to tell those of a running container.
    pub async fn stats(self: &Arc<Self>) -> Result<Metrics, TaskError> {
        let mut failed = None;
        if self.pod.supervisor.expects_answers() {
            let container = Arc::clone(self);
            // In a task of its own: an answer that comes late is the last one when the next question comes.
            let asked = tokio::spawn(async move { container.ask_for_counters().await });
            match tokio::time::timeout(deadline::COUNTERS, asked).await {
                Ok(Ok(Ok(()))) => {}
                Ok(Ok(Err(error))) => failed = Some(error),
                Ok(Err(_)) | Err(_) => self.pod.supervisor.missed(self.agent()),
            }
        }
        let oom = self.oom_told.load(Ordering::Acquire);
        let ended = self.life.exit().is_some();
        match (lock(&self.counters).clone(), failed) {
            (_, Some(error)) if !ended => Err(error.into()),
            (Some(mut metrics), _) => {
                if oom && let Some(events) = metrics.memory_events.as_mut() {
                    events.oom_kill = events.oom_kill.max(1);
                }
                Ok(metrics)
            }
            (None, _) => Ok(stats::of_the_unknown(oom)),
        }
    }

    async fn ask_for_counters(&self) -> Result<(), AgentError> {
        let request = ContainerRequest { container_id: self.id.clone() };
        let mut client = self.agent().client();
        let stats = self.agent().call("read a container's counters", client.stats(request)).await?;
        *lock(&self.counters) = Some(stats::metrics(&stats));
        Ok(())
    }
}
