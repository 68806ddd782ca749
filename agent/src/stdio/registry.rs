//! Connections the host has opened and not yet named in a call.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::error::{AgentError, Result};
use crate::sync::lock;

/// A two-way byte stream with half-close.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Any such stream.
pub type BoxStream = Box<dyn Stream>;

/// Most connections that wait to be named.
const MAX_WAITING: usize = 4096;
/// How long a connection waits to be named.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long a connection may take to say its id.
const HELLO: Duration = Duration::from_secs(30);

/// Connections by the id the host gave them.
#[derive(Default)]
pub struct Registry {
    waiting: Mutex<HashMap<u64, BoxStream>>,
    arrived: Notify,
}

impl Registry {
    /// Takes in a connection: its first eight bytes are its id.
    pub async fn accept(self: Arc<Self>, mut stream: BoxStream) {
        let id = tokio::time::timeout(HELLO, stream.read_u64_le()).await;
        // One that says nothing, or 0, is closed.
        let Ok(Ok(id @ 1..)) = id else { return };
        {
            let mut waiting = lock(&self.waiting);
            if waiting.len() >= MAX_WAITING || waiting.contains_key(&id) {
                return;
            }
            waiting.insert(id, stream);
        }
        self.arrived.notify_waiters();
        tokio::time::sleep(PATIENCE).await;
        lock(&self.waiting).remove(&id);
    }

    /// The connection with this id, waited for until `deadline` if need be; `None` for id 0.
    ///
    /// # Errors
    ///
    /// [`AgentError::NotFound`] when it does not come.
    pub async fn take(&self, id: u64, deadline: Instant) -> Result<Option<BoxStream>> {
        if id == 0 {
            return Ok(None);
        }
        let come = async {
            loop {
                let arrived = self.arrived.notified();
                tokio::pin!(arrived);
                // Registered before looking, so that an arrival in between is not missed.
                arrived.as_mut().enable();
                if let Some(stream) = lock(&self.waiting).remove(&id) {
                    return stream;
                }
                arrived.await;
            }
        };
        tokio::time::timeout_at(deadline, come)
            .await
            .map(Some)
            .map_err(|_| AgentError::NotFound(format!("stream {id} was never connected")))
    }
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    const SOON: Duration = Duration::from_secs(45);

    fn soon() -> Instant {
        Instant::now() + SOON
    }

    #[tokio::test]
    async fn a_connection_is_found_by_its_id_before_or_after_it_comes() {
        let registry = Arc::new(Registry::default());
        let (mut host, guest) = tokio::io::duplex(64);
        let early = tokio::spawn({
            let registry = Arc::clone(&registry);
            async move { registry.take(7, soon()).await.unwrap().is_some() }
        });
        tokio::spawn(Arc::clone(&registry).accept(Box::new(guest)));
        host.write_all(&7_u64.to_le_bytes()).await.unwrap();
        assert!(early.await.unwrap());
        assert!(registry.take(0, soon()).await.unwrap().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_does_not_come_is_waited_for_until_the_callers_deadline() {
        let begin = Instant::now();
        let refused = Registry::default().take(9, soon()).await;
        assert!(matches!(refused, Err(AgentError::NotFound(_))));
        let waited = begin.elapsed();
        assert!((SOON..SOON + Duration::from_secs(1)).contains(&waited), "{waited:?}");
    }
}
