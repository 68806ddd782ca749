//! A shim spoken to as containerd speaks to it, without a containerd: the binary is started with what a version of
//! containerd writes to it, and its tasks are driven over ttrpc.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use containerd_shim_protos::api::{
    ConnectRequest, CreateTaskRequest, DeleteRequest, DeleteResponse, ExecProcessRequest, ForwardRequest,
    KillRequest, Mount, ShutdownRequest, StartRequest, StateRequest, WaitRequest,
};
use containerd_shim_protos::bootstrap_api::BootstrapParams;
use containerd_shim_protos::events::task::{
    TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskOOM, TaskPaused, TaskResumed,
    TaskStart,
};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::{Client, Events, TaskClient, create_events};
use serde_json::{Value, json};
use ttrpc::context::Context;

use crate::{Host, PATIENCE, Run, eventually, images, until};

const SHIM: &str = "containerd-shim-ravelin-v2";
const NAMESPACE: &str = "shim-tests";

/// What containerd writes to the standard input of `start`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bootstrap {
    /// 1.6 to 2.2, for a runtime without options.
    Nothing,
    /// 1.6 to 2.2: the runtime's options.
    Options,
    /// 2.3 and newer.
    Params,
}

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

/// What is read of a process's fifos until they end.
#[derive(Debug)]
pub struct Output {
    stdout: Reader,
    stderr: Reader,
}

/// Reads a fifo to its end, in the background.
#[derive(Debug)]
struct Reader {
    heard: Arc<Mutex<Vec<u8>>>,
    thread: JoinHandle<()>,
}

impl Reader {
    fn heard(&self) -> String {
        String::from_utf8_lossy(&self.heard.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }
}

impl Output {
    /// Waits for both outputs' ends: stdout and stderr.
    #[track_caller]
    pub fn whole(self) -> (String, String) {
        eventually("the outputs end", || {
            (self.stdout.thread.is_finished() && self.stderr.thread.is_finished()).then_some(())
        });
        (self.stdout.heard(), self.stderr.heard())
    }

    /// Waits until stdout holds `text`.
    #[track_caller]
    pub fn says(&self, text: &str) {
        eventually("the process says what it has to", || self.stdout.heard().contains(text).then_some(()));
    }
}

/// What a process of the host holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holdings {
    /// Open descriptors.
    pub descriptors: usize,
    /// Threads.
    pub threads: usize,
    /// Resident memory without files, in KiB: pages of files are shared or not as others come and go.
    pub anonymous_kib: usize,
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

    /// Runs the sandbox: Create and Start of its task.
    #[track_caller]
    pub fn run_sandbox(&self) {
        let mut request = CreateTaskRequest::new();
        request.id.clone_from(&self.id);
        request.bundle = self.folder.join(&self.id).display().to_string();
        let created = self.tasks.create(patience(), &request);
        created.unwrap_or_else(|error| panic!("the sandbox is not created: {error}\n{}", self.log()));
        self.start_process(&self.id, "").unwrap_or_else(|error| {
            panic!("the sandbox does not start: {error:?}\n{}", self.log());
        });
    }

    /// Creates a container of busybox as containerd would: `start` in its bundle, then Create.
    pub fn create(&self, id: &str, script: &str) -> Result<Output, Refusal> {
        self.create_with(id, script, |_| {})
    }

    /// [`Shim::create`] with changes to the OCI spec.
    pub fn create_with(
        &self,
        id: &str,
        script: &str,
        change: impl FnOnce(&mut Value),
    ) -> Result<Output, Refusal> {
        let bundle = self.folder.join(id);
        let mut spec = container_spec(&self.id, id, &["/bin/sh", "-c", script]);
        change(&mut spec);
        make_bundle(&bundle, &spec);
        let socket = format!("unix://{}", self.folder.join("events.sock").display());
        assert_eq!(
            run_start(&bundle, id, &socket, self.bootstrap),
            self.address,
            "a container joins its sandbox"
        );
        let (stdout, stderr) = (fifo(&bundle, "stdout"), fifo(&bundle, "stderr"));
        let output = Output { stdout: read(&stdout), stderr: read(&stderr) };
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
        match self.tasks.create(patience(), &request) {
            Ok(_) => Ok(output),
            Err(error) => {
                // A reader waits for somebody who writes: nobody will.
                for path in [&stdout, &stderr] {
                    drop(fs::File::options().read(true).write(true).open(path));
                }
                Err(refusal(error))
            }
        }
    }

    /// Adds an exec of `script` to a container.
    pub fn exec(&self, id: &str, exec_id: &str, script: &str) -> Result<Output, Refusal> {
        let bundle = self.folder.join(id);
        let (stdout, stderr) = (fifo(&bundle, "stdout"), fifo(&bundle, "stderr"));
        let output = Output { stdout: read(&stdout), stderr: read(&stderr) };
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

/// Notes events.
struct Listener(Arc<Mutex<Vec<String>>>);

impl Events for Listener {
    fn forward(
        &self,
        _: &ttrpc::TtrpcContext,
        request: ForwardRequest,
    ) -> ttrpc::Result<containerd_shim_protos::api::Empty> {
        let envelope = request.envelope.unwrap_or_default();
        assert_eq!(envelope.namespace, NAMESPACE);
        let line = describe(&envelope.topic, &envelope.event.unwrap_or_default().value);
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(line);
        Ok(containerd_shim_protos::api::Empty::new())
    }
}

/// An event as a line.
fn describe(topic: &str, bytes: &[u8]) -> String {
    fn parse<M: Message>(bytes: &[u8]) -> M {
        M::parse_from_bytes(bytes).expect("an event of its topic's type")
    }
    match topic {
        "/tasks/create" => format!("create {}", parse::<TaskCreate>(bytes).container_id),
        "/tasks/start" => format!("start {}", parse::<TaskStart>(bytes).container_id),
        "/tasks/delete" => format!("delete {}", parse::<TaskDelete>(bytes).container_id),
        "/tasks/oom" => format!("oom {}", parse::<TaskOOM>(bytes).container_id),
        "/tasks/paused" => format!("paused {}", parse::<TaskPaused>(bytes).container_id),
        "/tasks/resumed" => format!("resumed {}", parse::<TaskResumed>(bytes).container_id),
        "/tasks/exit" => {
            let exit: TaskExit = parse(bytes);
            let exec = if exit.id == exit.container_id { String::new() } else { format!("/{}", exit.id) };
            format!("exit {}{exec} {}", exit.container_id, exit.exit_status)
        }
        "/tasks/exec-added" => {
            let added: TaskExecAdded = parse(bytes);
            format!("exec-added {}/{}", added.container_id, added.exec_id)
        }
        "/tasks/exec-started" => {
            let started: TaskExecStarted = parse(bytes);
            format!("exec-started {}/{}", started.container_id, started.exec_id)
        }
        other => format!("{other}?"),
    }
}

/// What the process `pid` of the host holds now.
#[must_use]
pub fn holdings(pid: u32) -> Holdings {
    let count = |what: &str| fs::read_dir(format!("/proc/{pid}/{what}")).map_or(0, Iterator::count);
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let fields: BTreeMap<&str, usize> = rollup
        .lines()
        .filter_map(|line| line.split_once(':'))
        .filter_map(|(name, value)| Some((name, value.split_whitespace().next()?.parse().ok()?)))
        .collect();
    let anonymous_kib = fields.get("Anonymous").copied().unwrap_or_default();
    Holdings { descriptors: count("fd"), threads: count("task"), anonymous_kib }
}

/// What a process's descriptors are, for a test that has failed.
#[must_use]
pub fn descriptors(pid: u32) -> Vec<String> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let links = entries.filter_map(|entry| fs::read_link(entry.path()).ok());
    links.map(|link| link.display().to_string()).collect()
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

/// Runs `start` in a bundle; its answer.
#[track_caller]
fn run_start(bundle: &Path, id: &str, events: &str, bootstrap: Bootstrap) -> String {
    let mut command = Command::new(SHIM);
    command
        .args(["-namespace", NAMESPACE, "-address", "/run/containerd/containerd.sock"])
        .args(["-publish-binary", "/usr/bin/containerd", "-id", id, "start"])
        .current_dir(bundle)
        .env("TTRPC_ADDRESS", events)
        .env("MAX_SHIM_VERSION", "2")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    let mut child = command.spawn().expect("the shim's binary can be run");
    let input = match bootstrap {
        Bootstrap::Nothing => Vec::new(),
        Bootstrap::Options => {
            let mut options = Any::new();
            options.type_url = "runtimeoptions.v1.Options".to_owned();
            // Options{1: type_url}
            options.value = b"\x0a\x04test".to_vec();
            options.write_to_bytes().expect("a message can be encoded")
        }
        Bootstrap::Params => {
            let mut params = BootstrapParams::new();
            params.instance_id = id.to_owned();
            params.namespace = NAMESPACE.to_owned();
            params.containerd_version = "2.3.4".to_owned();
            params.containerd_ttrpc_address = events.to_owned();
            params.socket_dir = Some("/run/containerd/s".to_owned());
            params.write_to_bytes().expect("a message can be encoded")
        }
    };
    child.stdin.take().expect("stdin is a pipe").write_all(&input).expect("start reads its input");
    let done = child.wait_with_output().expect("start can be waited for");
    let (out, err) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success(), "start failed: {out}{err}");
    // containerd takes both outputs together for the answer.
    assert_eq!(err, "", "start wrote to its standard error output");
    if bootstrap != Bootstrap::Params {
        return out.trim().to_owned();
    }
    let result: Value = serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error} in {out}"));
    assert_eq!((&result["version"], &result["protocol"]), (&json!(2), &json!("ttrpc")), "{out}");
    result["address"].as_str().expect("an address").to_owned()
}

fn make_netns(name: &str) {
    let ip = |line: &str| drop(Run::new("ip").args(line.split(' ')).ok());
    ip(&format!("netns add {name}"));
    ip(&format!("-n {name} link set lo up"));
    // Both ends inside: nobody has to remove one of them.
    ip(&format!("-n {name} link add eth0 mtu 1500 type veth peer name outside"));
    ip(&format!("-n {name} addr add 10.55.0.2/24 dev eth0"));
    ip(&format!("-n {name} link set eth0 up"));
    ip(&format!("-n {name} link set outside up"));
    ip(&format!("-n {name} route add default via 10.55.0.1 dev eth0"));
}

fn make_bundle(bundle: &Path, spec: &Value) {
    // A log that is a file instead of a pipe can be read when a test has failed.
    fs::create_dir_all(bundle.join("rootfs")).expect("a bundle can be made");
    fs::write(bundle.join("log"), "").expect("a log can be made");
    fs::write(bundle.join("config.json"), spec.to_string()).expect("a spec can be written");
}

/// A new fifo in a bundle.
fn fifo(bundle: &Path, name: &str) -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(1);
    let path = bundle.join(format!("{name}-{}", COUNT.fetch_add(1, Ordering::Relaxed)));
    Run::new("mkfifo").arg(&path).ok();
    path
}

fn read(fifo: &Path) -> Reader {
    let (fifo, heard) = (fifo.to_owned(), Arc::<Mutex<Vec<u8>>>::default());
    let sink = Arc::clone(&heard);
    let thread = std::thread::spawn(move || {
        let Ok(mut file) = fs::File::open(&fifo) else { return };
        let mut bytes = [0; 4096];
        // An error is an end.
        while let Ok(count @ 1..) = file.read(&mut bytes) {
            sink.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&bytes[..count]);
        }
    });
    Reader { heard, thread }
}

fn process_spec(args: &[&str]) -> Value {
    let capabilities =
        json!(["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_KILL", "CAP_SETGID", "CAP_SETUID"]);
    json!({
        "user": { "uid": 0, "gid": 0 },
        "args": args,
        "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
        "cwd": "/",
        "capabilities": { "bounding": capabilities, "effective": capabilities, "permitted": capabilities },
        "noNewPrivileges": true,
    })
}

fn sandbox_spec(id: &str) -> Value {
    json!({
        "ociVersion": "1.1.0",
        "process": process_spec(&["/pause"]),
        "root": { "path": "rootfs", "readonly": true },
        "hostname": "shim-test",
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"] },
        ],
        "linux": {
            "cgroupsPath": format!("/shim-tests/{id}"),
            "namespaces": [
                { "type": "pid" }, { "type": "ipc" }, { "type": "uts" }, { "type": "mount" },
                { "type": "network", "path": format!("/run/netns/{id}") },
            ],
        },
        "annotations": {
            "io.kubernetes.cri.container-type": "sandbox",
            "io.kubernetes.cri.sandbox-id": id,
            "io.kubernetes.cri.sandbox-name": "shim-test",
            "io.kubernetes.cri.sandbox-namespace": "tests",
            "io.kubernetes.cri.sandbox-cpu-period": "100000",
            "io.kubernetes.cri.sandbox-cpu-quota": "100000",
            "io.kubernetes.cri.sandbox-cpu-shares": "1024",
            "io.kubernetes.cri.sandbox-memory": (512 << 20).to_string(),
        },
    })
}

fn container_spec(sandbox: &str, id: &str, args: &[&str]) -> Value {
    json!({
        "ociVersion": "1.1.0",
        "process": process_spec(args),
        "root": { "path": "rootfs" },
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"] },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"] },
            { "destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"] },
            { "destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"] },
            { "destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"] },
            { "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["nosuid", "noexec", "nodev", "relatime", "ro"] },
        ],
        "linux": {
            "cgroupsPath": format!("/shim-tests/{id}"),
            "resources": { "devices": [{ "allow": false, "access": "rwm" }] },
            "namespaces": [
                { "type": "pid" }, { "type": "mount" }, { "type": "ipc" }, { "type": "uts" },
                { "type": "network" },
            ],
        },
        "annotations": {
            "io.kubernetes.cri.container-type": "container",
            "io.kubernetes.cri.container-name": id,
            "io.kubernetes.cri.sandbox-id": sandbox,
        },
    })
}
