//! How the runtime's one thread shares with others: it never waits for a file, a child or the kernel, but has threads for that.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};

use crate::error::{AgentError, Result};

/// Most threads for work that blocks; more of it waits its turn.
const THREADS: usize = 128;

/// Locks a mutex. What it guards is whole even if a thread that held it panicked.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The agent's runtime. Its threads for blocking work never end once they are there, and one is there from the start: tokio
/// panics when it cannot have a thread and has none, and otherwise leaves the work to those that it has.
///
/// # Errors
///
/// When the kernel refuses.
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

/// Runs what may block on a thread made for that.
///
/// # Errors
///
/// Those of `work`.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| AgentError::Failed(format!("a task of the agent failed: {error}")))?
}
