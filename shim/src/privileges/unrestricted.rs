//! Threads that the shim's restriction to files of its own does not concern.
//!
//! Landlock restricts the thread that asks for it, and those that it makes. So one thread that is older makes the others
//! that have to write where containerd says, or begin a program that mounts: Landlock takes that from all that it restricts.

use std::io;
use std::sync::OnceLock;
use std::sync::mpsc::{Sender, channel};
use std::thread;

use tokio::runtime::Handle;
use tokio::sync::{Semaphore, oneshot};

use crate::sync::{Cancelled, blocking};

/// What a thread is called, and does.
type Work = (&'static str, Box<dyn FnOnce() + Send>);

/// Most such threads at a time, as many as the runtime has for [`blocking`] work: a disk that hangs would hold one for each
/// request.
static PLACES: Semaphore = Semaphore::const_new(16);
/// The way to the thread that makes the others.
static MAKER: OnceLock<Sender<Work>> = OnceLock::new();

/// Begins the thread from which all [`unrestricted`] ones come, before this one is restricted.
pub(super) fn keep() -> io::Result<()> {
    let (sender, receiver) = channel::<Work>();
    thread::Builder::new().name("unrestricted".to_owned()).spawn(move || {
        for (name, work) in receiver {
            // With a thread that the node does not give goes the work, which tells who waits for it.
            if let Err(error) = thread::Builder::new().name(name.to_owned()).spawn(work) {
                tracing::error!("cannot begin the thread {name}: {error}");
            }
        }
    })?;
    MAKER.set(sender).map_err(|_| io::Error::other("the shim restricts itself once"))
}

/// Runs work that may write anywhere, or begins a program that mounts, in a thread of its own called `name` (at most 15 bytes),
/// within the caller's runtime. Only for paths that containerd or the configuration names.
///
/// A caller that goes away does not end the work; what it returns is dropped then. A process that is not restricted, as those
/// of tests, runs it as any [`blocking`] work.
///
/// # Errors
/// The work's own, or [`Cancelled`].
pub async fn unrestricted<T, E>(
    name: &'static str,
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, E>
where
    T: Send + 'static,
    E: From<Cancelled> + Send + 'static,
{
    let Some(maker) = MAKER.get() else { return blocking(work).await };
    let place = PLACES.acquire().await.map_err(|_| Cancelled)?;
    let (sender, receiver) = oneshot::channel();
    let runtime = Handle::current();
    let work = move || {
        let (_place, _within) = (place, runtime.enter());
        let _ = sender.send(work());
    };
    maker.send((name, Box::new(work))).map_err(|_| Cancelled)?;
    receiver.await.map_err(|_| Cancelled)?
}
