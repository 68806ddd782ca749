//! The end of a pod's machine: why it came, what it means for the pod's processes, and what is left to do.

use std::sync::Arc;
use std::time::Duration;

use containerd_shim_protos::events::task::TaskExit;
use protobuf::MessageField;

use super::supervisor::{Guest, HUNG_UP, Order};
use super::{KILLED, LOST, Sandbox};
use crate::cgroup::PodCgroup;
use crate::events::{Publisher, timestamp};
use crate::machine;
use crate::process::{Exit, Phase};
use crate::sync::lock;

impl Sandbox {
    /// What a process of the pod that ends with the machine has for an exit status.
    #[must_use]
    pub fn status_of_the_lost(&self) -> u32 {
        match self.supervisor.ordered() {
            _ if self.is_oom_killed() => KILLED,
            Some(order) if order.status != LOST => KILLED,
            _ => LOST,
        }
    }

    /// Whether the node's kernel killed the machine for memory, and its processes with it.
    #[must_use]
    pub fn is_oom_killed(&self) -> bool {
        let Some(exit) = self.machine.exited() else { return false };
        // The answer stays when the cgroup goes.
        *self.oom_killed.get_or_init(|| {
            let counted = lock(&self.resources).cgroup.as_ref().is_some_and(PodCgroup::oom_killed);
            is_oom_kill(exit, self.supervisor.ordered(), counted)
        })
    }

    /// How long the guest may take at its end to write out its volumes; nothing if it has none that it may write to.
    #[must_use]
    pub fn sync_deadline(&self) -> Duration {
        let with_volumes = self.pod.get().filter(|pod| pod.file_server.serves_writable());
        with_volumes.map_or(Duration::ZERO, |pod| pod.sync_deadline)
    }

    /// Sees the machine to its end, removes what the pod has on the host, and tells the world.
    pub async fn watch(self: Arc<Self>, publisher: Publisher) {
        let guest = || {
            let pod = self.pod.get()?;
            let volumes = Some(self.sync_deadline()).filter(|patience| !patience.is_zero());
            Some(Guest { agent: pod.agent.clone(), volumes })
        };
        let exit = self.supervisor.oversee(&self.machine, guest).await;
        // As long as the cgroup is there, which tells it.
        let oom_killed = self.is_oom_killed();
        let order = self.supervisor.ordered();
        match order {
            _ if oom_killed => {
                tracing::error!(
                    sandbox = self.id,
                    "the pod's machine has ended: {exit}, by the node's kernel, which was short of memory"
                );
            }
            None => tracing::error!(sandbox = self.id, "the pod's machine has ended unasked: {exit}"),
            Some(order) => {
                tracing::info!(
                    sandbox = self.id,
                    "the pod's machine has ended: {exit}, because {}",
                    order.why
                );
            }
        }
        if let Some(booting) = lock(&self.booting).as_ref() {
            booting.abort();
        }
        if let Some(pod) = self.pod.get() {
            pod.volumes.close();
            pod.file_server.end().await;
        }
        let resources = std::mem::take(&mut *lock(&self.resources));
        resources.remove().await;
        let _turn = self.turn.lock().await;
        let status = if oom_killed { KILLED } else { order.map_or(LOST, |order| order.status) };
        let exit = Exit::now(status);
        self.life.set(Phase::Stopped(exit));
        let mut event = TaskExit::new();
        event.container_id.clone_from(&self.id);
        event.id.clone_from(&self.id);
        event.pid = self.pid();
        event.exit_status = exit.status;
        event.exited_at = MessageField::some(timestamp(exit.at));
        self.tell(&publisher, &event);
    }
}

/// Whether a machine that ended so, and by this order if there was one, was killed for memory: `counted` says that a process of
/// its cgroup was.
///
/// The order may be the one for a machine that has broken off the conversation: one that is being killed does, and to give
/// back much memory takes time.
fn is_oom_kill(exit: machine::Exit, order: Option<Order>, counted: bool) -> bool {
    let by_us = order.is_some_and(|order| order.why != HUNG_UP);
    exit == machine::Exit::Signal(9) && !by_us && counted
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, OnceLock};

    use ravelin_policy::Size;
    use ravelin_vmm::control::ExitReason;

    use super::*;
    use crate::agent::testing::Fake;
    use crate::process::Life;
    use crate::sandbox::supervisor::How;
    use crate::sandbox::testing::{pod_of, sandbox};

    #[test]
    fn what_the_kernel_killed_for_memory_is_told_from_what_we_did() {
        let killed = machine::Exit::Signal(9);
        let order = |why| Some(Order { how: How::Cut, status: LOST, why });
        assert!(is_oom_kill(killed, None, true));
        assert!(is_oom_kill(killed, order(HUNG_UP), true));
        assert!(!is_oom_kill(killed, order("it was asked to"), true));
        assert!(!is_oom_kill(killed, None, false), "somebody else sent SIGKILL");
        assert!(!is_oom_kill(machine::Exit::Ended(ExitReason::Panic), None, true));
    }

    #[tokio::test]
    async fn a_pod_that_has_ended_does_not_start_any_more() {
        let pod = Arc::new(pod_of(&Fake::default()).await);
        let (up, comes_up) = tokio::sync::oneshot::channel();
        let mut sandbox =
            Arc::into_inner(sandbox(&pod, Size { vcpus: 1, cpu_millis: 1000, memory_mib: 512 })).unwrap();
        (sandbox.life, sandbox.pod) = (Life::default(), OnceLock::new());
        sandbox.booting = Mutex::new(Some(tokio::spawn(async move {
            comes_up.await.unwrap();
            Ok(pod)
        })));
        let (sandbox, publisher) = (Arc::new(sandbox), Publisher::start(None, "k8s.io"));
        let starting = {
            let (sandbox, publisher) = (Arc::clone(&sandbox), publisher.clone());
            tokio::spawn(async move { sandbox.start(&publisher).await })
        };
        tokio::task::yield_now().await;
        // The guest has come up, and the word of it is on its way; meanwhile the machine ends.
        sandbox.machine.kill();
        Arc::clone(&sandbox).watch(publisher.clone()).await;
        up.send(()).unwrap();
        let error = starting.await.unwrap().unwrap_err().to_string();
        assert!(error.starts_with("the pod's machine has ended before the pod was started"), "{error}");
        assert_eq!(publisher.queued(), ["/tasks/exit"]);
    }
}
