//! The removal of an ended container from the guest, when the guest does not do it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::watch;

use crate::sandbox::Pod;

/// How far a container's removal is, and who presses for it.
///
/// As long as a container has not been removed it runs in CRI's eyes, so that who wants to be rid of it sends SIGKILL, though
/// its process has ended. A guest that is asked to remove it and neither does so nor answers has then the patience that a
/// process has to end after SIGKILL; so has one that refuses.
#[derive(Debug, Default)]
pub(crate) struct Removal {
    begun: AtomicBool,
    pressed: AtomicBool,
    overseen: AtomicBool,
    done: watch::Sender<bool>,
}

impl Removal {
    /// The guest is about to be asked.
    pub fn begin(self: &Arc<Self>, pod: &Arc<Pod>) {
        self.begun.store(true, Ordering::Release);
        self.oversee(pod);
    }

    /// Somebody sent SIGKILL to what has ended.
    pub fn press(self: &Arc<Self>, pod: &Arc<Pod>) {
        self.pressed.store(true, Ordering::Release);
        self.oversee(pod);
    }

    /// The container is gone from the guest.
    pub fn done(&self) {
        self.done.send_replace(true);
    }

    /// Whether it is gone.
    pub fn is_done(&self) -> bool {
        *self.done.borrow()
    }

    fn oversee(self: &Arc<Self>, pod: &Arc<Pod>) {
        let due = self.begun.load(Ordering::Acquire) && self.pressed.load(Ordering::Acquire);
        if !due || self.overseen.swap(true, Ordering::AcqRel) {
            return;
        }
        let (removal, pod) = (Arc::clone(self), Arc::clone(pod));
        tokio::spawn(async move {
            let mut done = removal.done.subscribe();
            let gone = done.wait_for(|done| *done);
            pod.supervisor.see_to_the_end_of(&pod.agent, gone).await;
        });
    }
}
