//! A creation on its way, which can be called off.

use tokio_util::sync::{CancellationToken, DropGuard};

use crate::error::TaskError;
use crate::sandbox::supervisor::deadline;

/// What is being made: others call it off and wait until nothing of it is left.
#[derive(Debug, Clone)]
pub(super) struct Making {
    /// The id under which it will be known.
    pub id: String,
    cancelled: CancellationToken,
    over: CancellationToken,
}

impl Making {
    /// Of the id; `cancelled` is what its maker listens to. The creation is over when the guard is dropped.
    pub fn new(id: &str, cancelled: &CancellationToken) -> (Self, DropGuard) {
        let over = CancellationToken::new();
        let making = Self { id: id.to_owned(), cancelled: cancelled.clone(), over: over.clone() };
        (making, over.drop_guard())
    }

    /// Tells the maker that nobody wants it any more.
    pub fn cancel(&self) {
        self.cancelled.cancel();
    }

    /// Calls it off and waits until it is taken down.
    ///
    /// # Errors
    /// When that takes long; it goes on, and can be asked for again.
    pub async fn call_off(&self) -> Result<(), TaskError> {
        self.cancel();
        let over = tokio::time::timeout(deadline::UNDO, self.over.cancelled()).await;
        let late = |_| {
            TaskError::FailedPrecondition(format!("{} is still being made, and will be taken down", self.id))
        };
        over.map_err(late)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_calls_off_waits_for_the_maker() {
        let cancelled = CancellationToken::new();
        let (making, guard) = Making::new("c", &cancelled);
        let maker = async {
            cancelled.cancelled().await;
            tokio::task::yield_now().await;
            drop(guard);
        };
        let (called_off, ()) = tokio::join!(making.call_off(), maker);
        called_off.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_maker_that_does_not_come_to_an_end_is_not_waited_for_for_ever() {
        let (making, _guard) = Making::new("c", &CancellationToken::new());
        let error = making.call_off().await.unwrap_err().to_string();
        assert!(error.contains("c is still being made"), "{error}");
    }
}
