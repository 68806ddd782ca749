//! A container of a case, as its host handles it.

use std::time::Duration;

use ravelin_proto::agent as api;
use serde_json::Value;
use tonic::Status;

use crate::host::{Client, Streams, USER_NAMESPACE, process, spec};

pub struct Container {
    pub client: Client,
    pub id: String,
    pub streams: Streams,
}

impl Container {
    pub async fn create(client: &Client, id: &str, spec: Value) -> Result<Self, Status> {
        Self::create_with(client, id, spec, false, |_| ()).await
    }

    pub async fn create_with(
        client: &Client,
        id: &str,
        spec: Value,
        terminal: bool,
        change: impl FnOnce(&mut api::CreateContainerRequest),
    ) -> Result<Self, Status> {
        Self::send(client, id, spec, terminal, None, change).await
    }

    /// Creates it as a caller does who gives up after `patience`.
    pub async fn create_within(
        client: &Client,
        id: &str,
        spec: Value,
        patience: Duration,
    ) -> Result<Self, Status> {
        Self::send(client, id, spec, false, Some(patience), |_| ()).await
    }

    async fn send(
        client: &Client,
        id: &str,
        spec: Value,
        terminal: bool,
        patience: Option<Duration>,
        change: impl FnOnce(&mut api::CreateContainerRequest),
    ) -> Result<Self, Status> {
        let mut client = client.clone();
        let streams = Streams::open(terminal).await;
        let mut request = api::CreateContainerRequest {
            container_id: id.into(),
            spec: spec.to_string().into_bytes().into(),
            layers: vec![2, 1],
            stdio: Some(streams.stdio),
            map_layers: USER_NAMESPACE.is_set(),
            ..Default::default()
        };
        change(&mut request);
        let mut request = tonic::Request::new(request);
        if let Some(patience) = patience {
            request.set_timeout(patience);
        }
        client.create_container(request).await?;
        Ok(Self { client, id: id.into(), streams })
    }

    pub fn name(&self, exec: &str) -> api::ProcessRequest {
        api::ProcessRequest { container_id: self.id.clone(), exec_id: exec.into() }
    }

    pub async fn start(&mut self) {
        self.client.start(self.name("")).await.unwrap();
    }

    pub async fn wait(&mut self, exec: &str) -> api::WaitResponse {
        self.client.wait(self.name(exec)).await.unwrap().into_inner()
    }

    pub async fn delete(&mut self) {
        self.client.delete(self.name("")).await.unwrap();
    }

    pub async fn kill(&mut self, exec: &str, signal: u32, all: bool) -> Result<(), Status> {
        let request = api::KillRequest { container_id: self.id.clone(), exec_id: exec.into(), signal, all };
        self.client.kill(request).await.map(drop)
    }

    pub async fn end(&mut self) {
        let _ = self.kill("", 9, true).await;
        self.wait("").await;
        self.delete().await;
    }

    /// Starts, reads all, waits, deletes.
    pub async fn finish(mut self) -> (u32, String, String) {
        self.start().await;
        let (out, err) = (self.streams.out().await, self.streams.err().await);
        let status = self.wait("").await.exit_status;
        self.delete().await;
        (status, out, err)
    }

    pub async fn exec_with(&mut self, id: &str, process: Value, terminal: bool) -> Result<Streams, Status> {
        let streams = Streams::open(terminal).await;
        let request = api::ExecRequest {
            container_id: self.id.clone(),
            exec_id: id.into(),
            process: process.to_string().into_bytes().into(),
            stdio: Some(streams.stdio),
        };
        self.client.exec(request).await?;
        self.client.start(self.name(id)).await?;
        Ok(streams)
    }

    pub async fn exec(&mut self, id: &str, args: &[&str]) -> (u32, String, String) {
        let mut streams = self.exec_with(id, process(args), false).await.unwrap();
        let (out, err) = (streams.out().await, streams.err().await);
        let status = self.wait(id).await.exit_status;
        self.client.delete(self.name(id)).await.unwrap();
        (status, out, err)
    }
}

pub async fn sh(client: &Client, id: &str, script: &str) -> (u32, String, String) {
    Container::create(client, id, spec(&["sh", "-c", script])).await.unwrap().finish().await
}

pub async fn sleeper(client: &Client, id: &str) -> Container {
    let mut container = Container::create(client, id, spec(&["sleep", "1000"])).await.unwrap();
    container.start().await;
    container
}
