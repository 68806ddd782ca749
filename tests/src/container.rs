//! A container: described, run, talked to.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::pod::set;
use crate::{Finished, Logs, PATIENCE, Pod, Run, Session, images, until};

/// What a container shall be. Starts as busybox; [`ContainerSpec::set`] changes any field of CRI's `ContainerConfig`.
#[derive(Debug)]
pub struct ContainerSpec<'p> {
    pod: &'p Pod<'p>,
    config: Value,
}

/// A created or running container. It goes with its pod, or in a pod that several tests have in common, when it is dropped.
#[derive(Debug)]
pub struct Container<'p> {
    pod: &'p Pod<'p>,
    /// The container's id.
    pub id: String,
    log: PathBuf,
    _removal: Option<Removal>,
}

/// Removes the container of this id when it is dropped.
#[derive(Debug)]
struct Removal(String);

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Exit code.
    pub code: i64,
    /// CRI's reason: `Completed`, `Error`, `OOMKilled`, ...
    pub reason: String,
    /// The runtime's words, if it has any.
    pub message: String,
}

impl<'p> ContainerSpec<'p> {
    pub(crate) fn new(pod: &'p Pod<'p>) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(1);
        let name = format!("c{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let config = json!({
            "metadata": { "name": name, "attempt": 0 },
            "image": { "image": images::BUSYBOX },
            "log_path": format!("{name}.log"),
            "linux": {
                "resources": {},
                "security_context": { "namespace_options": { "network": 0, "pid": 1, "ipc": 0 } },
            },
        });
        let mut spec = Self { pod, config };
        let pids = pod_pids(pod);
        set(&mut spec.config, "/linux/security_context/namespace_options/pid", pids);
        spec
    }

    /// Sets the field at `pointer` (RFC 6901) of the `ContainerConfig`, making the objects on the way.
    #[must_use]
    pub fn set(mut self, pointer: &str, value: impl Into<Value>) -> Self {
        set(&mut self.config, pointer, value.into());
        self
    }

    /// Another image than busybox.
    #[must_use]
    pub fn image(self, image: &str) -> Self {
        self.set("/image/image", image)
    }

    /// The command and its arguments; without them the image's own are run.
    #[must_use]
    pub fn command(self, command: &[&str]) -> Self {
        self.set("/command", command)
    }

    /// Runs `script` with `sh -c`.
    #[must_use]
    pub fn sh(self, script: &str) -> Self {
        self.command(&["/bin/sh", "-c", script])
    }

    /// Does nothing until it is told to end.
    #[must_use]
    pub fn idle(self) -> Self {
        self.sh("trap 'exit 0' TERM; while :; do sleep 9999 & wait; done")
    }

    /// Adds an environment variable.
    #[must_use]
    pub fn env(mut self, key: &str, value: &str) -> Self {
        push(&mut self.config, "envs", json!({ "key": key, "value": value }));
        self
    }

    /// Mounts a path of the host.
    #[must_use]
    pub fn mount(mut self, host_path: impl Into<PathBuf>, container_path: &str, readonly: bool) -> Self {
        let host_path = host_path.into();
        let mount = json!({ "container_path": container_path, "host_path": host_path, "readonly": readonly });
        push(&mut self.config, "mounts", mount);
        self
    }

    /// Sets a field of the container's security context.
    #[must_use]
    pub fn security(self, field: &str, value: impl Into<Value>) -> Self {
        self.set(&format!("/linux/security_context/{field}"), value)
    }

    /// Creates and starts it; panics with the runtime's words when it is refused.
    #[track_caller]
    pub fn start(self) -> Container<'p> {
        let container = self.create();
        container.start();
        container
    }

    /// Creates it; panics with the runtime's words when it is refused.
    #[track_caller]
    pub fn create(self) -> Container<'p> {
        self.try_create().unwrap_or_else(|error| panic!("the container is not created: {error}"))
    }

    /// Creates it; the runtime's words when it is refused.
    #[track_caller]
    pub fn try_create(self) -> Result<Container<'p>, String> {
        let name = self.config["metadata"]["name"].as_str().unwrap_or_default();
        let file = self.pod.config_file().with_file_name(format!("{name}.json"));
        fs::write(&file, self.config.to_string()).expect("the container's configuration can be written");
        let run =
            Run::crictl().args(["create", "--no-pull", &self.pod.id]).arg(&file).arg(self.pod.config_file());
        let done = run.run();
        if done.code != 0 {
            return Err(done.stderr.trim().to_owned());
        }
        let id = done.text().trim().to_owned();
        self.pod.note_id(&id);
        let log = self.pod.log_folder().join(self.config["log_path"].as_str().unwrap_or_default());
        let removal = self.pod.is_common().then(|| Removal(id.clone()));
        Ok(Container { pod: self.pod, id, log, _removal: removal })
    }
}

impl Drop for Removal {
    fn drop(&mut self) {
        // The test may have removed it.
        Run::crictl().args(["rm", "-f", &self.0]).run();
    }
}

impl Container<'_> {
    /// Starts a created container.
    #[track_caller]
    pub fn start(&self) {
        self.try_start().unwrap_or_else(|error| panic!("the container does not start: {error}"));
    }

    /// Starts a created container; the runtime's words when it does not start.
    #[track_caller]
    pub fn try_start(&self) -> Result<(), String> {
        let done = Run::crictl().args(["start", &self.id]).run();
        if done.code == 0 { Ok(()) } else { Err(done.stderr.trim().to_owned()) }
    }

    /// The pod it runs in.
    #[must_use]
    pub fn pod(&self) -> &Pod<'_> {
        self.pod
    }

    /// `crictl inspect`.
    #[track_caller]
    pub fn inspect(&self) -> Value {
        Run::crictl().args(["inspect", "-o", "json", &self.id]).json()
    }

    /// CRI's word for the container's state.
    #[track_caller]
    pub fn state(&self) -> String {
        self.inspect()["status"]["state"].as_str().unwrap_or_default().to_owned()
    }

    /// Waits for its end.
    #[track_caller]
    pub fn ended(&self) -> Ended {
        self.ended_within(PATIENCE)
    }

    fn end(&self) -> Option<Ended> {
        let status = self.inspect()["status"].take();
        (status["state"] == "CONTAINER_EXITED").then(|| Ended {
            code: status["exitCode"].as_i64().unwrap_or_default(),
            reason: status["reason"].as_str().unwrap_or_default().to_owned(),
            message: status["message"].as_str().unwrap_or_default().to_owned(),
        })
    }

    /// Waits for its end for as long as `limit`.
    #[track_caller]
    pub fn ended_within(&self, limit: Duration) -> Ended {
        let ended = until(limit, || self.end());
        ended.unwrap_or_else(|| panic!("the container did not end within {} s", limit.as_secs()))
    }

    /// Waits for its end, which must be a success, and gives its standard output.
    #[track_caller]
    pub fn output(&self) -> String {
        let ended = self.ended();
        let logs = self.logs();
        assert!(ended.code == 0, "the container ended with {ended:?}; it said {}{}", logs.out(), logs.err());
        logs.out()
    }

    /// Its logs so far.
    #[track_caller]
    pub fn logs(&self) -> Logs {
        Logs::read(&self.log)
    }

    /// Waits until its standard output holds `text`.
    #[track_caller]
    pub fn says(&self, text: &str) {
        let heard = until(PATIENCE, || self.logs().out().contains(text).then_some(()));
        let logs = self.logs();
        assert!(heard.is_some(), "the container never said {text:?} but {:?}{:?}", logs.out(), logs.err());
    }

    /// Asks it to end, and kills it after `grace`.
    #[track_caller]
    pub fn stop(&self, grace: Duration) {
        Run::crictl().args(["stop", "--timeout", &grace.as_secs().to_string(), &self.id]).ok();
    }

    /// Removes it, running or not.
    #[track_caller]
    pub fn remove(&self) {
        Run::crictl().args(["rm", "-f", &self.id]).ok();
    }

    /// Runs a command in it and waits for its end (CRI's `ExecSync`). What the command printed is in `stdout`, its
    /// error output behind it, without line breaks at the end; of a command that fails crictl shows the error output
    /// and the exit code, both in `stderr`.
    #[track_caller]
    pub fn exec(&self, command: &[&str]) -> Finished {
        let mut done = Run::crictl().args(["exec", "--sync", &self.id]).args(command).run();
        done.stdout.truncate(done.stdout.trim_ascii_end().len());
        done
    }

    /// Runs a script in it. Its output; panics unless it succeeds.
    #[track_caller]
    pub fn exec_sh(&self, script: &str) -> String {
        let done = self.exec(&["/bin/sh", "-c", script]);
        assert!(done.code == 0, "{script}: exit {}: {}{}", done.code, done.text(), done.stderr);
        done.text().trim_end_matches('\n').to_owned()
    }

    /// A command in it that one talks to (CRI's streaming `Exec`), through pipes.
    #[track_caller]
    pub fn exec_session(&self, command: &[&str]) -> Session {
        Session::pipes(&Run::crictl().args(["exec", "-i", &self.id]).args(command))
    }

    /// A command in it on a terminal.
    #[track_caller]
    pub fn exec_terminal(&self, command: &[&str], rows: u16, columns: u16) -> Session {
        Session::terminal(&Run::crictl().args(["exec", "-it", &self.id]).args(command), rows, columns)
    }

    /// Attaches to its first process through pipes.
    #[track_caller]
    pub fn attach(&self) -> Session {
        Session::pipes(&Run::crictl().args(["attach", "-i", &self.id]))
    }
}

/// The pod's choice of PID namespace, which its containers repeat.
fn pod_pids(pod: &Pod<'_>) -> Value {
    pod.config()["linux"]["security_context"]["namespace_options"]["pid"].clone()
}

fn push(config: &mut Value, list: &str, item: Value) {
    if !config[list].is_array() {
        config[list] = json!([]);
    }
    if let Some(items) = config[list].as_array_mut() {
        items.push(item);
    }
}
