//! A pod: described, run, looked at, removed without a trace.

use std::fs;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};

use crate::{ContainerSpec, Handler, Host, Run, Session, Traces};

/// What a pod shall be. Starts as a plain pod of its own namespaces; [`PodSpec::set`] changes any field of CRI's
/// `PodSandboxConfig`.
#[derive(Debug)]
pub struct PodSpec<'h> {
    host: PhantomData<&'h Host>,
    handler: Handler,
    config: Value,
    /// The memory limit of the pod's cgroup, in MiB.
    allowed_mib: Option<u64>,
}

/// A pod that runs. Dropping it removes it and panics if it leaves anything behind.
#[derive(Debug)]
pub struct Pod<'h> {
    host: PhantomData<&'h Host>,
    /// The sandbox's id.
    pub id: String,
    /// The pod's uid.
    pub uid: String,
    folder: PathBuf,
    config: Value,
    traces: Mutex<Traces>,
    removed: bool,
    /// Several tests have it in common: a container in it goes with the test.
    common: bool,
}

impl<'h> PodSpec<'h> {
    /// A pod named after the running test, for who does everything else by itself.
    #[must_use]
    pub fn of_test() -> Self {
        Self::new()
    }

    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(1);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let thread = std::thread::current();
        let test = thread.name().unwrap_or("pod").rsplit("::").next().unwrap_or_default().replace('_', "-");
        let test = test.get(..40).unwrap_or(&test).trim_matches('-');
        let name = format!("{test}-{count}");
        let uid = format!("{:08x}-{count:04x}-4000-8000-000000000000", std::process::id());
        let config = json!({
            "metadata": { "name": name, "namespace": "e2e", "uid": uid, "attempt": 0 },
            "hostname": name,
            "log_directory": format!("/var/log/pods/e2e_{name}_{uid}"),
            "labels": { "test": test },
            "linux": {
                "cgroup_parent": format!("/kubepods/pod{uid}"),
                "security_context": { "namespace_options": { "network": 0, "pid": 1, "ipc": 0 } },
            },
        });
        // A whole CPU: the quarter that a pod gets unasked makes every step four times as slow.
        Self { host: PhantomData, handler: Host::handler(), config, allowed_mib: None }.sized(1000, 512)
    }

    /// A pod that says nothing of its size.
    #[must_use]
    pub fn without_size(mut self) -> Self {
        if let Some(linux) = self.config["linux"].as_object_mut() {
            linux.remove("resources");
        }
        self
    }

    /// Sets the field at `pointer` (RFC 6901) of the `PodSandboxConfig`, making the objects on the way.
    #[must_use]
    pub fn set(mut self, pointer: &str, value: impl Into<Value>) -> Self {
        set(&mut self.config, pointer, value.into());
        self
    }

    /// Another runtime handler than the one under test.
    #[must_use]
    pub fn with_handler(mut self, handler: Handler) -> Self {
        self.handler = handler;
        self
    }

    /// What the kubelet says of a pod with these limits: milli-CPUs and MiB.
    #[must_use]
    pub fn sized(self, milli_cpus: i64, memory_mib: i64) -> Self {
        self.set("/linux/resources/cpu_period", 100_000)
            .set("/linux/resources/cpu_quota", milli_cpus * 100)
            .set("/linux/resources/cpu_shares", milli_cpus * 1024 / 1000)
            .set("/linux/resources/memory_limit_in_bytes", memory_mib << 20)
    }

    /// The kubelet's memory limit of the whole pod, in MiB: its containers' limits and the RuntimeClass's overhead.
    #[must_use]
    pub fn allowed(mut self, mib: u64) -> Self {
        self.allowed_mib = Some(mib);
        self
    }

    /// All containers share one PID namespace.
    #[must_use]
    pub fn with_shared_pids(self) -> Self {
        self.set("/linux/security_context/namespace_options/pid", 0)
    }

    /// The pod's name.
    #[must_use]
    pub fn name(&self) -> String {
        self.config["metadata"]["name"].as_str().unwrap_or_default().to_owned()
    }

    /// Begins to run the pod and does not wait: for tests in which that comes to nothing. [`PodSpec::start`] can follow.
    #[track_caller]
    #[must_use]
    pub fn begin(&self) -> Session {
        Session::pipes(&self.prepare())
    }

    /// Makes what the kubelet makes before it runs a pod; gives the command that runs it.
    pub fn prepare(&self) -> Run {
        let folder = self.folder();
        fs::create_dir_all(&folder).expect("the test's folder can be made");
        let logs = self.config["log_directory"].as_str().unwrap_or_default();
        fs::create_dir_all(logs).expect("the log folder can be made");
        make_cgroups(self.config["linux"]["cgroup_parent"].as_str().unwrap_or_default(), self.allowed_mib);
        let file = folder.join("pod.json");
        fs::write(&file, self.config.to_string()).expect("the pod's configuration can be written");
        Run::crictl().args(["runp", "--runtime", self.handler.name()]).arg(&file)
    }

    /// The pod's uid.
    #[must_use]
    pub fn uid(&self) -> String {
        self.config["metadata"]["uid"].as_str().unwrap_or_default().to_owned()
    }

    /// The folder in which the pod's configuration is, as `pod.json`.
    #[must_use]
    pub fn folder(&self) -> PathBuf {
        PathBuf::from(format!("/var/tmp/ravelin-tests/{}", self.uid()))
    }

    /// Runs the pod; panics with the runtime's words when it is refused.
    #[track_caller]
    pub fn start(self) -> Pod<'h> {
        let name = self.name();
        self.try_start().unwrap_or_else(|error| panic!("the pod {name} does not start: {error}"))
    }

    /// Runs the pod; the runtime's words when it does not start. A pod that fails must leave nothing behind, which
    /// this checks as far as the pod's own cgroup goes.
    #[track_caller]
    pub fn try_start(self) -> Result<Pod<'h>, String> {
        let name = self.name();
        let uid = self.uid();
        let folder = self.folder();
        let done = self.prepare().run();
        if done.code != 0 {
            remove_folders(&folder, &self.config);
            return Err(format!("{name}: {}", done.stderr.trim()));
        }
        let id = done.text().trim().to_owned();
        let mut traces = Traces::of_sandbox(&id, &uid);
        traces.note_processes();
        Ok(Pod {
            host: self.host,
            id,
            uid,
            folder,
            config: self.config,
            traces: Mutex::new(traces),
            removed: false,
            common: false,
        })
    }
}

impl<'h> Pod<'h> {
    /// The pod from now on, for several tests.
    pub(crate) fn in_common(self) -> Self {
        let mut pod = self;
        pod.common = true;
        pod
    }

    pub(crate) fn is_common(&self) -> bool {
        self.common
    }

    /// Gives the whole pod another memory limit, as the kubelet does when it is resized.
    #[track_caller]
    pub fn allow(&self, mib: u64) {
        make_cgroups(self.config["linux"]["cgroup_parent"].as_str().unwrap_or_default(), Some(mib));
    }

    /// A container to be started in this pod.
    #[must_use]
    pub fn container(&self) -> ContainerSpec<'_> {
        ContainerSpec::new(self)
    }

    /// Starts a container of busybox that runs `script` with `sh -c`.
    #[track_caller]
    pub fn sh(&self, script: &str) -> crate::Container<'_> {
        self.container().sh(script).start()
    }

    /// `crictl inspectp`.
    #[track_caller]
    pub fn inspect(&self) -> Value {
        Run::crictl().args(["inspectp", "-o", "json", &self.id]).json()
    }

    /// CRI's word for the pod's state.
    #[track_caller]
    pub fn state(&self) -> String {
        self.inspect()["status"]["state"].as_str().unwrap_or_default().to_owned()
    }

    /// The pod's addresses, IPv4 first if the network gives one.
    #[track_caller]
    pub fn addresses(&self) -> Vec<std::net::IpAddr> {
        let network = &self.inspect()["status"]["network"];
        let more = network["additionalIps"].as_array().cloned().unwrap_or_default();
        let all = std::iter::once(&network["ip"]).chain(more.iter().map(|more| &more["ip"]));
        let mut all: Vec<std::net::IpAddr> =
            all.filter_map(|ip| ip.as_str()).map(|ip| ip.parse().expect("an address")).collect();
        all.sort_by_key(std::net::IpAddr::is_ipv6);
        all
    }

    /// The pod's network namespace on the host.
    #[track_caller]
    pub fn netns(&self) -> PathBuf {
        let traces = self.traces.lock().expect("no test panics while it notes traces");
        traces.netns().expect("the sandbox's specification names its network namespace").to_owned()
    }

    /// A process of `program` that serves the pod: the shim, the machine.
    #[must_use]
    pub fn process(&self, program: &str) -> Option<u32> {
        crate::leaks::process(&self.id, &self.uid, program)
    }

    /// The folder that the kubelet would give the pod.
    #[must_use]
    pub fn kubelet_folder(&self) -> PathBuf {
        Path::new("/var/lib/kubelet/pods").join(&self.uid)
    }

    /// `crictl stopp`.
    #[track_caller]
    pub fn stop(&self) {
        self.note_processes();
        Run::crictl().args(["stopp", &self.id]).ok();
    }

    /// Removes the pod, running or not, and panics if anything of it stays.
    #[track_caller]
    pub fn remove(mut self) {
        self.take_away();
    }

    /// Where the pod lives on the host.
    #[track_caller]
    pub fn traces(&self) -> Traces {
        self.note_processes();
        self.traces.lock().expect("no test panics while it notes traces").clone()
    }

    pub(crate) fn note_id(&self, id: &str) {
        self.traces.lock().expect("no test panics while it notes traces").add_id(id);
    }

    pub(crate) fn config(&self) -> &Value {
        &self.config
    }

    pub(crate) fn config_file(&self) -> PathBuf {
        self.folder.join("pod.json")
    }

    pub(crate) fn log_folder(&self) -> PathBuf {
        PathBuf::from(self.config["log_directory"].as_str().unwrap_or_default())
    }

    fn note_processes(&self) {
        self.traces.lock().expect("no test panics while it notes traces").note_processes();
    }

    #[track_caller]
    fn take_away(&mut self) {
        self.removed = true;
        self.note_processes();
        let done = Run::crictl().args(["rmp", "-f", &self.id]).run();
        assert!(done.code == 0, "{} failed: {}", done.line, done.stderr);
        let traces = self.traces.lock().expect("no test panics while it notes traces");
        traces.assert_gone();
        remove_folders(&self.folder, &self.config);
        // It may never have been made.
        let _ = fs::remove_dir_all(self.kubelet_folder());
    }
}

impl Drop for Pod<'_> {
    fn drop(&mut self) {
        if self.removed {
            return;
        }
        if std::thread::panicking() {
            // The test has failed already: show what is known, take away what can be.
            let list = Run::crictl().args(["ps", "-a", "--pod", &self.id]).run();
            println!("containers of the pod:\n{}", list.text());
            Run::crictl().args(["rmp", "-f", &self.id]).run();
            return;
        }
        self.take_away();
    }
}

/// Sets the value at an RFC 6901 pointer, making the objects on the way.
pub(crate) fn set(config: &mut Value, pointer: &str, value: Value) {
    let mut at = config;
    for key in pointer.split('/').skip(1) {
        let key = key.replace("~1", "/").replace("~0", "~");
        at = match at {
            Value::Array(items) => {
                let index: usize = key.parse().expect("an array is indexed by numbers");
                &mut items[index]
            }
            _ => &mut at[key],
        };
    }
    *at = value;
}

/// Makes the pod's cgroup, as the kubelet does before it runs a pod.
fn make_cgroups(parent: &str, allowed_mib: Option<u64>) {
    let roots: Vec<PathBuf> = if Host::has_cgroup2() {
        vec![PathBuf::from("/sys/fs/cgroup")]
    } else {
        ["cpu", "memory", "pids"].iter().map(|name| Path::new("/sys/fs/cgroup").join(name)).collect()
    };
    for root in roots {
        let mut at = root;
        for part in parent.split('/').filter(|part| !part.is_empty()) {
            // Absent on version 1; refused where a controller is missing or processes live: then without it.
            for controller in ["+cpu", "+memory", "+pids", "+io", "+cpuset"] {
                let _ = fs::write(at.join("cgroup.subtree_control"), controller);
            }
            at = at.join(part);
            fs::create_dir_all(&at).unwrap_or_else(|error| panic!("cannot make {}: {error}", at.display()));
        }
        if let Some(mib) = allowed_mib {
            let files = ["memory.max", "memory.limit_in_bytes"].map(|file| at.join(file));
            for file in files.iter().filter(|file| file.exists()) {
                fs::write(file, (mib << 20).to_string()).expect("the pod's memory can be limited");
            }
        }
    }
}

/// Removes what the test made for the pod. A cgroup that is not empty cannot be removed: then the pod left something.
#[track_caller]
fn remove_folders(folder: &Path, config: &Value) {
    // Files of the test itself; they may not exist.
    let _ = fs::remove_dir_all(folder);
    let _ = fs::remove_dir_all(config["log_directory"].as_str().unwrap_or_default());
    let parent = config["linux"]["cgroup_parent"].as_str().unwrap_or_default().trim_start_matches('/');
    if parent.is_empty() {
        return;
    }
    let controllers: &[&str] = if Host::has_cgroup2() { &[""] } else { &["cpu", "memory", "pids"] };
    for controller in controllers {
        let path = Path::new("/sys/fs/cgroup").join(controller).join(parent);
        let removed = crate::until(std::time::Duration::from_secs(30), || fs::remove_dir(&path).ok());
        assert!(removed.is_some(), "the pod's cgroup {} is still in use", path.display());
    }
}
