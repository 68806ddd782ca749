//! A shim spoken to as containerd speaks to it, without a containerd: the binary is started with what a version of
//! containerd writes to it, and its tasks are driven over ttrpc.

mod bootstrap;
mod bundle;
mod events;
mod holdings;
mod output;
mod remains;

pub use bootstrap::Bootstrap;
pub use holdings::{Holdings, descriptors, holdings};
pub use output::Output;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use containerd_shim_protos::api::{
    ConnectRequest, CreateTaskRequest, DeleteRequest, DeleteResponse, ExecProcessRequest, KillRequest, Mount,
    PidsRequest, ShutdownRequest, StartRequest, StateRequest, WaitRequest,
};
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::{Client, TaskClient, create_events};
use serde_json::Value;
use ttrpc::context::Context;

use crate::{Host, PATIENCE, Run, eventually, images, until};
use bootstrap::run_start;
use bundle::{container_spec, make_bundle, make_netns, process_spec, sandbox_spec};
use events::Listener;
use output::fifo;

const SHIM: &str = "containerd-shim-ravelin-v2";
const NAMESPACE: &str = "shim-tests";

/// A gRPC code as ttrpc carries it, and the words beside it.
pub type Refusal = (ttrpc::Code, String);

/// A shim that serves one sandbox, whose events come here. Dropping it removes what the test made for it.
pub struct Shim<'h> {
    _host: &'h Host,
    /// The sandbox's id.
    pub id: String,
    /// The address that `start` answered with.
    pub address: String,
    folder: PathBuf,
    bootstrap: Bootstrap,
    tasks: TaskClient,
    told: Arc<Mutex<Vec<String>>>,
    events: Option<ttrpc::Server>,
}

impl std::fmt::Debug for Shim<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shim").field("id", &self.id).finish_non_exhaustive()
    }
}

impl<'h> Shim<'h> {
    /// Runs `start` for a new sandbox as containerd would, with a network namespace of its own, and connects.
    #[track_caller]
    pub fn start(host: &'h Host, bootstrap: Bootstrap) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(1);
        let id = format!("shim-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let folder = PathBuf::from("/var/tmp/ravelin-tests").join(&id);
        fs::create_dir_all(&folder).expect("the test's folder can be made");
        make_netns(&id);
        let bundle = folder.join(&id);
        make_bundle(&bundle, &sandbox_spec(&id));

        let told = Arc::<Mutex<Vec<String>>>::default();
        let socket = format!("unix://{}", folder.join("events.sock").display());
        let mut events = ttrpc::Server::new()
            .bind(&socket)
            .expect("a socket for events")
            .register_service(create_events(Arc::new(Listener(Arc::clone(&told)))));
        events.start().expect("events are served");

        let address = run_start(&bundle, &id, &socket, bootstrap);
        let client =
            Client::connect(&address).unwrap_or_else(|error| panic!("no shim at {address}: {error}"));
        Self {
            _host: host,
            id,
            address,
            folder,
            bootstrap,
            tasks: TaskClient::new(client),
            told,
            events: Some(events),
        }
    }

    /// The generated client, for calls that have no helper here.
    #[must_use]
    pub fn tasks(&self) -> &TaskClient {
        &self.tasks
    }

    /// Create of the sandbox's task.
    pub fn create_sandbox(&self) -> Result<(), Refusal> {
        let mut request = CreateTaskRequest::new();
        request.id.clone_from(&self.id);
        request.bundle = self.folder.join(&self.id).display().to_string();
        self.tasks.create(patience(), &request).map(drop).map_err(refusal)
    }

    /// Runs the sandbox: Create and Start of its task.
    #[track_caller]
    pub fn run_sandbox(&self) {
        let created = self.create_sandbox();
        created.unwrap_or_else(|error| panic!("the sandbox is not created: {error:?}\n{}", self.log()));
        self.start_process(&self.id, "").unwrap_or_else(|error| {
            panic!("the sandbox does not start: {error:?}\n{}", self.log());
        });
    }

    /// Creates a container of busybox as containerd would: `start` in its bundle, then Create.
    pub fn create(&self, id: &str, script: &str) -> Result<Output, Refusal> {
        self.create_with(id, script, |_, _| {})
    }

    /// [`Shim::create`] with changes to the OCI spec and to the request.
    pub fn create_with(
        &self,
        id: &str,
        script: &str,
        change: impl FnOnce(&mut Value, &mut CreateTaskRequest),
    ) -> Result<Output, Refusal> {
        self.create_within(PATIENCE, id, script, change)
    }

    /// [`Shim::create_with`] of a caller that gives up after `patience`.
    pub fn create_within(
        &self,
        patience: Duration,
        id: &str,
        script: &str,
        change: impl FnOnce(&mut Value, &mut CreateTaskRequest),
    ) -> Result<Output, Refusal> {
        let bundle = self.folder.join(id);
        fs::create_dir_all(&bundle).expect("a bundle can be made");
        let (stdout, stderr) = (fifo(&bundle, "stdout"), fifo(&bundle, "stderr"));
        let mut request = CreateTaskRequest::new();
        request.id = id.to_owned();
        request.bundle = bundle.display().to_string();
        request.stdout = stdout.display().to_string();
        request.stderr = stderr.display().to_string();
        let mut rootfs = Mount::new();
        rootfs.type_ = "bind".to_owned();
        rootfs.source = self.rootfs().display().to_string();
        rootfs.options = vec!["rbind".to_owned(), "ro".to_owned()];
        request.rootfs.push(rootfs);
        let mut spec = container_spec(&self.id, id, &["/bin/sh", "-c", script]);
        change(&mut spec, &mut request);
        make_bundle(&bundle, &spec);
        let socket = format!("unix://{}", self.folder.join("events.sock").display());
        assert_eq!(
            run_start(&bundle, id, &socket, self.bootstrap),
            self.address,
            "a container joins its sandbox"
        );
        let output = Output::read(&stdout, &stderr);
        let created = self.tasks.create(ttrpc::context::with_duration(patience), &request);
        // A reader waits for somebody who writes: of a terminal there is one output, of what is not created none.
        let unused = [(&stdout, created.is_err()), (&stderr, created.is_err() || request.stderr.is_empty())];
        for (path, _) in unused.iter().filter(|(_, unused)| *unused) {
            drop(fs::File::options().read(true).write(true).open(path));
        }
        created.map(|_| output).map_err(refusal)
    }

    /// A new fifo for the standard input of what is created in the bundle of `id`.
    #[must_use]
    pub fn input(&self, id: &str) -> PathBuf {
        let bundle = self.folder.join(id);
        fs::create_dir_all(&bundle).expect("a bundle can be made");
        fifo(&bundle, "stdin")
    }

    /// The machine's process.
    #[must_use]
    pub fn machine(&self) -> u32 {
        let mut request = PidsRequest::new();
        request.id.clone_from(&self.id);
        self.tasks.pids(patience(), &request).expect("the sandbox has a process").processes[0].pid
    }

    /// Adds an exec of `script` to a container.
    pub fn exec(&self, id: &str, exec_id: &str, script: &str) -> Result<Output, Refusal> {
        let bundle = self.folder.join(id);
        let (stdout, stderr) = (fifo(&bundle, "stdout"), fifo(&bundle, "stderr"));
        let output = Output::read(&stdout, &stderr);
        let mut request = ExecProcessRequest::new();
        request.id = id.to_owned();
        request.exec_id = exec_id.to_owned();
        request.stdout = stdout.display().to_string();
        request.stderr = stderr.display().to_string();
        let mut process = Any::new();
        process.type_url = "types.containerd.io/opencontainers/runtime-spec/1/Process".to_owned();
        process.value = process_spec(&["/bin/sh", "-c", script]).to_string().into_bytes();
        request.spec = MessageField::some(process);
        self.tasks.exec(patience(), &request).map(|_| output).map_err(refusal)
    }

    /// Calls a method of a service that the shim has not.
    ///
    /// # Panics
    /// When it is answered all the same.
    #[track_caller]
    pub fn refuses(&self, service: &str, method: &str) -> Refusal {
        let client = Client::connect(&self.address).expect("the shim listens");
        let mut request = ttrpc::Request::new();
        request.service = service.to_owned();
        request.method = method.to_owned();
        request.timeout_nano = i64::try_from(PATIENCE.as_nanos()).unwrap_or(i64::MAX);
        refusal(client.request(request).expect_err("there is no such service"))
    }

    /// Start; the pid.
    pub fn start_process(&self, id: &str, exec_id: &str) -> Result<u32, Refusal> {
        let mut request = StartRequest::new();
        request.id = id.to_owned();
        request.exec_id = exec_id.to_owned();
        self.tasks.start(patience(), &request).map(|response| response.pid).map_err(refusal)
    }

    /// Wait; the exit status.
    pub fn wait(&self, id: &str, exec_id: &str) -> Result<u32, Refusal> {
        let mut request = WaitRequest::new();
        request.id = id.to_owned();
        request.exec_id = exec_id.to_owned();
        self.tasks.wait(patience(), &request).map(|response| response.exit_status).map_err(refusal)
    }

    /// Kill of one process.
    pub fn kill(&self, id: &str, exec_id: &str, signal: u32) -> Result<(), Refusal> {
        let mut request = KillRequest::new();
        request.id = id.to_owned();
        request.exec_id = exec_id.to_owned();
        request.signal = signal;
        self.tasks.kill(patience(), &request).map(drop).map_err(refusal)
    }

    /// Delete.
    pub fn delete(&self, id: &str, exec_id: &str) -> Result<DeleteResponse, Refusal> {
        let mut request = DeleteRequest::new();
        request.id = id.to_owned();
        request.exec_id = exec_id.to_owned();
        self.tasks.delete(patience(), &request).map_err(refusal)
    }

    /// State's status, by its name in containerd's API: `CREATED`, `RUNNING`, `STOPPED`, `PAUSED`.
    pub fn state(&self, id: &str, exec_id: &str) -> Result<String, Refusal> {
        let mut request = StateRequest::new();
        request.id = id.to_owned();
        request.exec_id = exec_id.to_owned();
        let state = self.tasks.state(patience(), &request).map_err(refusal)?;
        Ok(format!("{:?}", state.status.enum_value_or_default()))
    }

    /// Connect; the shim's own pid.
    pub fn connect(&self) -> u32 {
        let mut request = ConnectRequest::new();
        request.id.clone_from(&self.id);
        self.tasks.connect(patience(), &request).expect("the shim answers").shim_pid
    }

    /// Kills the sandbox, deletes it, says goodbye, and expects the shim's process and its socket to go.
    #[track_caller]
    pub fn remove_sandbox(&self) {
        let pid = self.connect();
        self.end_sandbox();
        self.goodbye(pid);
    }

    /// Kills and deletes the sandbox's task; the shim lives on.
    #[track_caller]
    pub fn end_sandbox(&self) {
        self.kill(&self.id, "", 9).expect("the sandbox can be killed");
        assert_eq!(self.wait(&self.id, ""), Ok(137));
        self.delete(&self.id, "").expect("the sandbox can be deleted");
    }

    /// Shutdown; expects the shim's process, its socket and its state to go.
    #[track_caller]
    pub fn goodbye(&self, pid: u32) {
        let mut request = ShutdownRequest::new();
        request.id.clone_from(&self.id);
        // The shim may be gone before its answer is read.
        let _ = self.tasks.shutdown(patience(), &request);
        eventually("the shim ends", || (!Path::new(&format!("/proc/{pid}")).exists()).then_some(()));
        let socket = self.address.trim_start_matches("unix://");
        assert!(!Path::new(socket).exists(), "the socket is left");
        assert!(!Path::new("/run/ravelin").join(&self.id).exists(), "the state is left");
    }

    /// The events so far, a line each: `create ID`, `exit ID/EXEC STATUS`, ...
    #[must_use]
    pub fn events(&self) -> Vec<String> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until the events that name `id` are these, in this order.
    #[track_caller]
    pub fn expect_events(&self, id: &str, expected: &[&str]) {
        let mut seen = Vec::new();
        let all = until(PATIENCE.min(Duration::from_secs(120)), || {
            seen = self.events();
            seen.retain(|line| line.split([' ', '/']).any(|word| word == id));
            (seen.len() >= expected.len()).then_some(())
        });
        assert!(all.is_some() && seen == expected, "events of {id}: {seen:?}, expected {expected:?}");
    }

    /// What the shim wrote to its log.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.join(&self.id).join("log")).unwrap_or_default()
    }

    /// Busybox's files, unpacked once for this shim.
    fn rootfs(&self) -> PathBuf {
        let rootfs = self.folder.join("rootfs");
        if !rootfs.exists() {
            let mounted = self.folder.join("image");
            fs::create_dir_all(&mounted).expect("a folder can be made");
            Run::ctr().args(["images", "mount", images::BUSYBOX]).arg(&mounted).ok();
            Run::new("cp").args(["-a"]).arg(&mounted).arg(&rootfs).ok();
            Run::ctr().args(["images", "unmount", "--rm"]).arg(&mounted).ok();
        }
        rootfs
    }
}

impl Drop for Shim<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("the shim's events: {:?}\nits log:\n{}", self.events(), self.log());
            // What is left of it, as containerd would take it away.
            let bundle = self.folder.join(&self.id);
            let delete = [
                "-namespace",
                NAMESPACE,
                "-id",
                &self.id,
                "-address",
                "/run/containerd/containerd.sock",
                "-bundle",
            ];
            Run::new(SHIM).args(delete).arg(&bundle).arg("delete").run();
        }
        if let Some(events) = self.events.take() {
            events.shutdown();
        }
        Run::new("ip").args(["netns", "del", &self.id]).run();
        // The test's own files.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn refusal(error: ttrpc::Error) -> Refusal {
    match error {
        ttrpc::Error::RpcStatus(status) => (status.code(), status.message),
        other => (ttrpc::Code::UNKNOWN, other.to_string()),
    }
}

fn patience() -> Context {
    ttrpc::context::with_duration(PATIENCE)
}
