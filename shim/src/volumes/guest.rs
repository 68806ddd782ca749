use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use ravelin_proto::agent::agent_client::AgentClient;
use ravelin_proto::agent::{PushVolumeRequest, ReadVolumeRequest};
use tonic::transport::Channel;

use crate::volumes::VolumeError;

/// Longest message of the agent's that is passed on, in characters.
const MAX_MESSAGE: usize = 512;

/// The two calls of the agent's that volumes need.
#[async_trait]
pub trait VolumeCalls: Send + Sync {
    /// Puts a volume's content in place.
    async fn push(&self, request: PushVolumeRequest) -> Result<(), String>;
    /// Reads a volume that containers may write.
    async fn read(&self, request: ReadVolumeRequest) -> Result<Vec<u8>, String>;
}

#[async_trait]
impl VolumeCalls for AgentClient<Channel> {
    async fn push(&self, request: PushVolumeRequest) -> Result<(), String> {
        self.clone().push_volume(request).await.map(drop).map_err(|status| status.message().to_owned())
    }

    async fn read(&self, request: ReadVolumeRequest) -> Result<Vec<u8>, String> {
        let reply = self.clone().read_volume(request).await.map_err(|status| status.message().to_owned())?;
        Ok(reply.into_inner().data.into())
    }
}

/// The guest as volumes see it: every call has a deadline, and what it answers is bounded.
#[derive(Clone)]
pub struct Guest {
    calls: Arc<dyn VolumeCalls>,
    deadline: Duration,
}

impl std::fmt::Debug for Guest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Guest")
    }
}

impl Guest {
    /// A guest whose agent has the time `deadline` for one volume.
    pub fn new(calls: impl VolumeCalls + 'static, deadline: Duration) -> Self {
        Self { calls: Arc::new(calls), deadline }
    }

    /// `path` is named in the error.
    pub(super) async fn push(&self, path: &str, request: PushVolumeRequest) -> Result<(), VolumeError> {
        self.within(path, self.calls.push(request)).await
    }

    /// The last words of a volume that containers may write: at most `max_bytes`, whatever the agent sends. The guest
    /// keeps nothing of it.
    pub(super) async fn take(
        &self,
        path: &str,
        volume: &str,
        max_bytes: u32,
    ) -> Result<Vec<u8>, VolumeError> {
        let request = ReadVolumeRequest { volume: volume.to_owned(), max_bytes, remove: true };
        let mut data = self.within(path, self.calls.read(request)).await?;
        data.truncate(usize::try_from(max_bytes).unwrap_or(usize::MAX));
        Ok(data)
    }

    /// Time for one volume.
    pub(super) fn deadline(&self) -> Duration {
        self.deadline
    }

    async fn within<T>(
        &self,
        path: &str,
        call: impl Future<Output = Result<T, String>>,
    ) -> Result<T, VolumeError> {
        let answer = match tokio::time::timeout(self.deadline, call).await {
            Ok(answer) => answer,
            Err(_) => Err(format!("its agent did not answer within {} s", self.deadline.as_secs())),
        };
        answer.map_err(|message| VolumeError::Push {
            path: path.to_owned(),
            message: message.chars().filter(|c| !c.is_control()).take(MAX_MESSAGE).collect(),
        })
    }
}
