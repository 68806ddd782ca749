//! When the shim ends: containerd says goodbye, nobody wants anything of it, or the node goes down.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::making::Making;
use super::{Entry, Service};
use crate::sandbox::supervisor::deadline;
use crate::task::Container;

/// How long a shim without anything that lives waits for something to do, and as long again to be sure.
const IDLE: Duration = Duration::from_secs(60);

impl Service {
    /// Whether there is nothing to serve.
    fn is_empty(&self) -> bool {
        let tasks = self.tasks();
        matches!(tasks.sandbox, Entry::Empty) && tasks.containers.is_empty()
    }

    /// Whether nothing lives: what is left of containers whose sandbox was deleted before them has no machine any more.
    fn is_idle(&self) -> bool {
        let tasks = self.tasks();
        let dead = |entry: &Entry<Container>| match entry {
            Entry::Ready(container) => container.life().exit().is_some(),
            Entry::Empty => true,
            Entry::Making(_) => false,
        };
        matches!(tasks.sandbox, Entry::Empty) && tasks.containers.values().all(dead)
    }

    /// Ends when nothing has lived for a while: containerd died between two calls.
    pub async fn idle(&self) {
        let mut idle_before = false;
        loop {
            tokio::time::sleep(IDLE).await;
            let idle = self.is_idle();
            if idle && idle_before {
                return;
            }
            idle_before = idle;
        }
    }

    /// containerd is done with the shim; it ends unless other tasks live, and when what is on its way out is gone.
    pub(super) fn shutdown(&self) {
        let making = {
            let tasks = self.tasks();
            matches!(tasks.sandbox, Entry::Making(_))
                || tasks.containers.values().any(|entry| matches!(entry, Entry::Making(_)))
        };
        self.goodbye.store(making, Ordering::Release);
        if self.is_empty() {
            self.ended.notify_one();
        }
    }

    /// Ends the shim if containerd has said goodbye and what it waited for was the last.
    pub(super) fn end_after_goodbye(&self) {
        if self.goodbye.load(Ordering::Acquire) && self.is_empty() {
            self.ended.notify_one();
        }
    }

    /// The node goes down: ends the pod in good order, within a bound. What is being made is taken down first.
    pub async fn node_goes_down(&self) {
        let making: Vec<Making> = {
            let tasks = self.tasks();
            let containers = tasks.containers.values().filter_map(|entry| match entry {
                Entry::Making(making) => Some(making.clone()),
                _ => None,
            });
            match &tasks.sandbox {
                Entry::Making(making) => containers.chain([making.clone()]).collect(),
                _ => containers.collect(),
            }
        };
        for called_off in futures_util::future::join_all(making.iter().map(Making::call_off)).await {
            if let Err(error) = called_off {
                tracing::warn!("{error}");
            }
        }
        let (sandbox, containers): (_, Vec<_>) = {
            let tasks = self.tasks();
            let sandbox = match &tasks.sandbox {
                Entry::Ready(sandbox) => Some(Arc::clone(sandbox)),
                _ => None,
            };
            let ready = tasks.containers.values().filter_map(|entry| match entry {
                Entry::Ready(container) => Some(Arc::clone(container)),
                _ => None,
            });
            (sandbox, ready.collect())
        };
        let all = containers.iter().map(|container| async move {
            if container.kill(15, false).await.is_ok() {
                container.life().ended().await;
            }
        });
        let _ = tokio::time::timeout(deadline::NODE_DOWN, futures_util::future::join_all(all)).await;
        if let Some(sandbox) = sandbox {
            let _ = sandbox.kill(15);
            let patience = deadline::NODE_DOWN + sandbox.sync_deadline();
            let _ = tokio::time::timeout(patience, sandbox.life().ended()).await;
            // containerd is told of each container's end before there is nobody left to tell it.
            let ends = containers.iter().map(|container| container.life().ended());
            let _ = tokio::time::timeout(deadline::NODE_DOWN, futures_util::future::join_all(ends)).await;
        }
    }
}
