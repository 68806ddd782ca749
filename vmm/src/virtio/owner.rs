//! What passes between a device's registers, which processors reach, and the thread that owns the device.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::queue::Virtqueue;

/// What the registers' owner tells the device's.
#[derive(Debug)]
pub enum Order {
    /// The driver is ready.
    Activate {
        /// The features that it accepted.
        features: u64,
        /// Its queues; those that it did not set up are `None`.
        queues: Vec<Option<Virtqueue>>,
    },
    /// The driver gives the device up: no byte of its memory may be touched once [`Reset::complete`] is called.
    Reset(Arc<Reset>),
}

/// A reset under way.
pub struct Reset {
    done: AtomicBool,
    completed: Arc<dyn Fn() + Send + Sync>,
}

impl std::fmt::Debug for Reset {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reset").field("done", &self.done).finish_non_exhaustive()
    }
}

impl Reset {
    /// A reset that `owner` is going to be told of.
    #[must_use]
    pub fn new(owner: &Owner) -> Self {
        Self { done: AtomicBool::new(false), completed: Arc::clone(&owner.completed) }
    }

    /// The device has let go of everything.
    pub fn complete(&self) {
        self.done.store(true, Ordering::SeqCst);
        (self.completed)();
    }

    /// Whether it has.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.done.load(Ordering::SeqCst)
    }
}

/// Where a transport's orders go, and whom a reset's completion is told.
pub struct Owner {
    /// Takes an order to the device's thread, without waiting.
    pub order: Box<dyn Fn(Order) + Send>,
    /// Called by the device's thread when a reset is complete.
    pub completed: Arc<dyn Fn() + Send + Sync>,
}

impl std::fmt::Debug for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Owner").finish_non_exhaustive()
    }
}
