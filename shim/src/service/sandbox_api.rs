//! The sandbox API (`containerd.runtime.sandbox.v1`): a pod's machine without a pause container in front of it.
//!
//! containerd uses it where a runtime is configured with `sandboxer = "shim"`. The containers in the sandbox are tasks as
//! ever.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use containerd_shim_protos::events::task::TaskCreate;
use containerd_shim_protos::sandbox_api::{
    CreateSandboxRequest, CreateSandboxResponse, PingRequest, PingResponse, PlatformRequest,
    PlatformResponse, SandboxMetricsRequest, SandboxMetricsResponse, SandboxStatusRequest,
    SandboxStatusResponse, ShutdownSandboxRequest, ShutdownSandboxResponse, StartSandboxRequest,
    StartSandboxResponse, StopSandboxRequest, StopSandboxResponse, WaitSandboxRequest, WaitSandboxResponse,
};
use containerd_shim_protos::sandbox_async::Sandbox as SandboxService;
use prost::Message;
use protobuf::MessageField;
use protobuf::well_known_types::any::Any;
use ravelin_policy::{PodIdentity, PushedKind, VolumeKind, classify};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use ttrpc::r#async::TtrpcContext;

use super::create::bundle;
use super::{Answer, Entry, Service, whole};
use crate::cri::{POD_SANDBOX_CONFIG, PodSandboxConfig};
use crate::error::TaskError;
use crate::events::timestamp;
use crate::process::Phase;
use crate::sandbox::plan::Plan;
use crate::sandbox::{self, Api, PodFiles, Sandbox};
use crate::stats;
use crate::volumes::NodeRoots;

/// CRI's words for a sandbox's state.
const READY: &str = "SANDBOX_READY";
const NOT_READY: &str = "SANDBOX_NOTREADY";

/// containerd's name for the type of an OCI spec, which is JSON.
const OCI_SPEC: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";

/// The generated trait's implementation.
pub(super) struct Handler(Arc<Service>);

impl Handler {
    pub(super) fn new(service: Arc<Service>) -> Self {
        Self(service)
    }
}

impl Service {
    /// The sandbox that was made through this API under this id.
    fn sandbox_of_api(&self, id: &str) -> Result<Arc<Sandbox>, TaskError> {
        match &self.tasks().sandbox {
            Entry::Ready(sandbox) if sandbox.id == id && sandbox.api == Api::Sandbox => {
                Ok(Arc::clone(sandbox))
            }
            _ => Err(TaskError::NotFound(format!("sandbox {id}"))),
        }
    }

    async fn create_sandbox_of_api(
        &self,
        request: CreateSandboxRequest,
        cancelled: CancellationToken,
    ) -> Result<(), TaskError> {
        let id = request.sandbox_id;
        if !crate::state::is_valid_id(&id) {
            return Err(TaskError::InvalidArgument(format!("{id:?} is not a sandbox id")));
        }
        let directory = bundle(&request.bundle_path)?;
        let options = request.options.into_option().unwrap_or_default();
        let config = match options.type_url.rsplit('/').next() {
            Some(POD_SANDBOX_CONFIG) => PodSandboxConfig::decode(&*options.value).map_err(|error| {
                TaskError::InvalidArgument(format!("the options of the sandbox {id} cannot be read: {error}"))
            })?,
            _ => {
                return Err(TaskError::InvalidArgument(format!(
                    "Ravelin runs pods: the options of the sandbox {id} must be CRI's {POD_SANDBOX_CONFIG}, not {:?}",
                    options.type_url
                )));
            }
        };
        self.check_bundle(&id, &directory)?;
        let plan = || {
            let request = sandbox::Request::from_cri(&id, &request.netns_path, &config)?;
            let mut plan = Plan::new(request, &self.config)?;
            plan.files = Some(files(&directory, &plan.hostname, &config)?);
            Ok(plan)
        };
        let event = TaskCreate::new();
        self.create_sandbox(&id, request.bundle_path, Api::Sandbox, plan, &cancelled, event).await?;
        Ok(())
    }

    /// Whether what is put into the bundle will be known again when containers mount it.
    fn check_bundle(&self, id: &str, directory: &Path) -> Result<(), TaskError> {
        let pod = PodIdentity { sandbox_id: id, pod_uid: "", host_ipc: false };
        let (hosts, roots) = (directory.join("hosts"), NodeRoots::new(&self.config.roots));
        roots.learn_containerd(directory, &[]);
        let roots = roots.known();
        match classify(&hosts.to_string_lossy(), pod, &roots) {
            VolumeKind::Pushed { kind: PushedKind::EtcHosts, .. } => Ok(()),
            _ => Err(TaskError::InvalidArgument(format!(
                "the bundle {} of the sandbox {id} is not where containerd is said to keep such: name its state directory in [roots] containerd of Ravelin's configuration, which has {:?}",
                directory.display(),
                roots.containerd
            ))),
        }
    }

    /// Ends the sandbox whatever its state, and with it the shim.
    async fn shutdown_sandbox(&self, id: &str) -> Result<(), TaskError> {
        self.call_off(id).await?;
        match self.sandbox_of_api(id) {
            Ok(sandbox) => {
                sandbox.stop();
                sandbox.life().ended().await;
                self.delete_sandbox(&sandbox).await?;
            }
            // Another's; only a shim without any has nothing more to do.
            Err(error) if !matches!(self.tasks().sandbox, Entry::Empty) => return Err(error),
            Err(_) => {}
        }
        self.ended.notify_one();
        Ok(())
    }
}

/// Writes the files that containerd leaves to the shim.
fn files(bundle: &Path, hostname: &str, config: &PodSandboxConfig) -> Result<PodFiles, TaskError> {
    PodFiles::write(bundle, hostname, config.dns_config.as_ref()).map_err(|error| {
        TaskError::Failed(format!(
            "cannot make the pod's hosts, hostname and resolv.conf in {}: {error}",
            bundle.display()
        ))
    })
}

/// The pod as an OCI spec, from which NRI's plugins learn its cgroup and its network namespace.
fn spec(sandbox: &Sandbox) -> Any {
    let plan = &sandbox.plan;
    let spec = json!({
        "ociVersion": oci_spec::runtime::VERSION,
        "hostname": plan.hostname,
        "linux": {
            "cgroupsPath": plan.cgroups_path,
            "namespaces": [{ "type": "network", "path": plan.netns }],
        },
    });
    let mut any = Any::new();
    any.type_url = OCI_SPEC.to_owned();
    any.value = spec.to_string().into_bytes();
    any
}

/// What `crictl inspectp` shows: a JSON text of which containerd reads the fields it knows.
fn info(sandbox: &Sandbox) -> String {
    let status = match sandbox.life().phase() {
        Phase::Created => "created",
        Phase::Running => "running",
        Phase::Paused => "paused",
        Phase::Stopped(_) => "stopped",
    };
    let pid = if sandbox.is_alive() { sandbox.pid() } else { 0 };
    json!({ "pid": pid, "processStatus": status }).to_string()
}

#[async_trait]
impl SandboxService for Handler {
    async fn create_sandbox(
        &self,
        _: &TtrpcContext,
        request: CreateSandboxRequest,
    ) -> Answer<CreateSandboxResponse> {
        let (service, id) = (Arc::clone(&self.0), request.sandbox_id.clone());
        let cancelled = CancellationToken::new();
        // As with tasks: a caller that is gone will never hear of what is made.
        let caller_gone = cancelled.clone().drop_guard();
        let work = async move { service.create_sandbox_of_api(request, cancelled).await };
        let created = whole("CreateSandbox", &id, work).await;
        caller_gone.disarm();
        created.map(|()| CreateSandboxResponse::new())
    }

    async fn start_sandbox(
        &self,
        _: &TtrpcContext,
        request: StartSandboxRequest,
    ) -> Answer<StartSandboxResponse> {
        let sandbox = self.0.sandbox_of_api(&request.sandbox_id)?;
        let (service, started) = (Arc::clone(&self.0), Arc::clone(&sandbox));
        let work = async move { service.start_sandbox(&started).await };
        whole("StartSandbox", &request.sandbox_id, work).await?;
        let mut response = StartSandboxResponse::new();
        response.pid = sandbox.pid();
        response.created_at = MessageField::some(timestamp(sandbox.created_at));
        response.spec = MessageField::some(spec(&sandbox));
        Ok(response)
    }

    async fn platform(&self, _: &TtrpcContext, request: PlatformRequest) -> Answer<PlatformResponse> {
        self.0.sandbox_of_api(&request.sandbox_id)?;
        let mut response = PlatformResponse::new();
        let platform = response.platform.mut_or_insert_default();
        platform.os = "linux".to_owned();
        // The OCI image specification has Go's names.
        platform.architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        }
        .to_owned();
        Ok(response)
    }

    async fn stop_sandbox(
        &self,
        _: &TtrpcContext,
        request: StopSandboxRequest,
    ) -> Answer<StopSandboxResponse> {
        self.0.call_off(&request.sandbox_id).await?;
        let sandbox = self.0.sandbox_of_api(&request.sandbox_id)?;
        let work = async move {
            sandbox.stop();
            let ended = sandbox.life().ended();
            match request.timeout_secs {
                // The supervisor's own deadlines hold.
                0 => drop(ended.await),
                seconds => {
                    let seconds = Duration::from_secs(seconds.into());
                    if tokio::time::timeout(seconds, ended).await.is_err() {
                        sandbox.cut("it did not stop in the time that containerd gave it");
                        sandbox.life().ended().await;
                    }
                }
            }
            Ok(())
        };
        whole("StopSandbox", &request.sandbox_id, work).await?;
        Ok(StopSandboxResponse::new())
    }

    async fn wait_sandbox(
        &self,
        _: &TtrpcContext,
        request: WaitSandboxRequest,
    ) -> Answer<WaitSandboxResponse> {
        let exit = self.0.sandbox_of_api(&request.sandbox_id)?.life().ended().await;
        let mut response = WaitSandboxResponse::new();
        response.exit_status = exit.status;
        response.exited_at = MessageField::some(timestamp(exit.at));
        Ok(response)
    }

    async fn sandbox_status(
        &self,
        _: &TtrpcContext,
        request: SandboxStatusRequest,
    ) -> Answer<SandboxStatusResponse> {
        let sandbox = self.0.sandbox_of_api(&request.sandbox_id)?;
        let mut response = SandboxStatusResponse::new();
        response.created_at = MessageField::some(timestamp(sandbox.created_at));
        response.state = NOT_READY.to_owned();
        match sandbox.life().phase() {
            // A machine that died is no longer ready, although its remains are still being removed.
            Phase::Running | Phase::Paused if sandbox.is_alive() => {
                response.state = READY.to_owned();
                response.pid = sandbox.pid();
            }
            Phase::Stopped(exit) => response.exited_at = MessageField::some(timestamp(exit.at)),
            Phase::Created if sandbox.is_alive() => response.pid = sandbox.pid(),
            Phase::Created | Phase::Running | Phase::Paused => {}
        }
        if request.verbose {
            response.info.insert("info".to_owned(), info(&sandbox));
        }
        response.sandbox_id = request.sandbox_id;
        Ok(response)
    }

    async fn ping_sandbox(&self, _: &TtrpcContext, request: PingRequest) -> Answer<PingResponse> {
        self.0.sandbox_of_api(&request.sandbox_id)?.pod()?;
        Ok(PingResponse::new())
    }

    async fn shutdown_sandbox(
        &self,
        _: &TtrpcContext,
        request: ShutdownSandboxRequest,
    ) -> Answer<ShutdownSandboxResponse> {
        let (service, id) = (Arc::clone(&self.0), request.sandbox_id.clone());
        let work = async move { service.shutdown_sandbox(&request.sandbox_id).await };
        whole("ShutdownSandbox", &id, work).await?;
        Ok(ShutdownSandboxResponse::new())
    }

    async fn sandbox_metrics(
        &self,
        _: &TtrpcContext,
        request: SandboxMetricsRequest,
    ) -> Answer<SandboxMetricsResponse> {
        let sandbox = self.0.sandbox_of_api(&request.sandbox_id)?;
        let counters = sandbox.counters()?;
        let mut response = SandboxMetricsResponse::new();
        let metrics = response.metrics.mut_or_insert_default();
        metrics.id = request.sandbox_id;
        metrics.timestamp = MessageField::some(timestamp(SystemTime::now()));
        metrics.data = MessageField::some(stats::any(&stats::metrics(&counters)).map_err(TaskError::failed)?);
        Ok(response)
    }
}
