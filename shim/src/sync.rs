//! What the whole shim shares between its tasks and threads by.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};

/// Most threads for work that blocks; more of it waits its turn.
const THREADS: usize = 16;

/// Work on another thread that never came to its end, because the runtime is shutting down, the work panicked or the node gave
/// no thread for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the work was cut short, or the node gave the shim no thread for it (its log says which)")]
pub struct Cancelled;

impl From<Cancelled> for io::Error {
    fn from(cancelled: Cancelled) -> Self {
        Self::other(cancelled)
    }
}

/// Takes a mutex, also after a thread that held it panicked: what our mutexes guard is whole after every statement.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The shim's runtime. Its threads for [`blocking`] work never end once they are there, and one is there from the start: tokio
/// panics when it cannot have a thread and has none, and otherwise leaves the work to those that it has.
///
/// # Errors
/// When the node refuses.
pub fn runtime() -> io::Result<Runtime> {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(THREADS)
        .thread_keep_alive(Duration::MAX)
        .build()?;
    let first = runtime.spawn_blocking(|| ());
    runtime.block_on(first)?;
    Ok(runtime)
}

/// Runs work that waits for a disk or a program on a thread where that stops nobody else.
///
/// A caller that goes away does not end the work; what it returns is dropped then.
///
/// # Errors
/// The work's own, or [`Cancelled`].
pub async fn blocking<T, E>(work: impl FnOnce() -> Result<T, E> + Send + 'static) -> Result<T, E>
where
    T: Send + 'static,
    E: From<Cancelled> + Send + 'static,
{
    tokio::task::spawn_blocking(work).await.map_err(|_| Cancelled)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_gives_its_result_and_a_panic_is_an_error() {
        assert_eq!(blocking(|| Ok::<_, Cancelled>(3)).await, Ok(3));
        let panicked: Result<(), _> = blocking(|| -> Result<(), Cancelled> { panic!("on purpose") }).await;
        assert_eq!(panicked, Err(Cancelled));
    }
}
