//! A kubelet that takes every answer: it asks containerd for one thing after the other, and goes on whatever comes.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ravelin_tests::{Host, Logs, PodSpec, Run, Session, images, until};
use serde_json::{Value, json};

/// Longest that containerd may take for an answer on an emulated host, whatever has happened.
pub const HANG: Duration = Duration::from_secs(120);

/// What a kubelet asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    RunPod,
    Create,
    Start,
    Exec,
    Stop,
    Remove,
    StopPod,
    RemovePod,
}

impl Op {
    /// What comes before it in a life that leads to it.
    pub fn before(self) -> &'static [Self] {
        match self {
            Self::RunPod => &[],
            Self::Create => &[Self::RunPod],
            Self::Start => &[Self::RunPod, Self::Create],
            Self::Exec | Self::Stop | Self::Remove | Self::StopPod => {
                &[Self::RunPod, Self::Create, Self::Start]
            }
            Self::RemovePod => &[Self::RunPod, Self::Create, Self::Start, Self::StopPod],
        }
    }
}

/// A pod with one container, which ignores SIGTERM.
#[derive(Debug)]
pub struct Kubelet {
    spec: PodSpec<'static>,
    name: String,
    folder: PathBuf,
    logs: PathBuf,
    /// Its id, once containerd has told it.
    pub sandbox: Option<String>,
    /// The container's.
    pub container: Option<String>,
}

impl Kubelet {
    pub fn new() -> Self {
        let spec = PodSpec::of_test();
        let (name, uid) = (spec.name(), spec.uid());
        let logs = PathBuf::from(format!("/var/log/pods/e2e_{name}_{uid}"));
        Self { folder: spec.folder(), spec, name, logs, sandbox: None, container: None }
    }

    /// The pod's cgroup on a host with cgroup v2.
    pub fn cgroup(&self) -> PathBuf {
        Path::new("/sys/fs/cgroup/kubepods").join(format!("pod{}", self.spec.uid()))
    }

    /// Makes what a kubelet makes before it runs a pod.
    pub fn prepare(&self) {
        self.spec.prepare();
        let script = "trap 'echo asked' TERM; echo ready; while :; do sleep 1000 & wait; done";
        let config = json!({
            "metadata": { "name": "c", "attempt": 0 },
            "image": { "image": images::BUSYBOX },
            "command": ["/bin/sh", "-c", script],
            "log_path": "c.log",
            "linux": {
                "resources": {},
                "security_context": { "namespace_options": { "network": 0, "pid": 1, "ipc": 0 } },
            },
        });
        fs::write(self.folder.join("c.json"), config.to_string()).expect("the container's configuration");
    }

    /// Asks for something and does not wait.
    pub fn begin(&self, op: Op) -> Session {
        let (pod, container) = (self.folder.join("pod.json"), self.folder.join("c.json"));
        let sandbox = self.sandbox.as_deref().unwrap_or("none");
        let id = self.container.as_deref().unwrap_or("none");
        let run = Run::crictl();
        Session::pipes(&match op {
            Op::RunPod => run.args(["runp", "--runtime", Host::handler().name()]).arg(pod),
            Op::Create => run.args(["create", "--no-pull", sandbox]).arg(container).arg(pod),
            Op::Start => run.args(["start", id]),
            Op::Exec => {
                let script = "echo in the exec; sleep 2";
                run.args(["exec", id, "/bin/sh", "-c", script])
            }
            Op::Stop => run.args(["stop", "--timeout", "5", id]),
            Op::Remove => run.args(["rm", "-f", id]),
            Op::StopPod => run.args(["stopp", sandbox]),
            Op::RemovePod => run.args(["rmp", sandbox]),
        })
    }

    /// Waits for the answer, which is an error or not.
    ///
    /// # Errors
    /// The error.
    pub fn answer(&mut self, op: Op, session: &mut Session) -> Result<(), Failed> {
        if !session.ends_within(HANG) {
            return Err(Failed::Hang(op));
        }
        if session.finish() != 0 {
            return Err(Failed::Error(session.heard().trim().to_owned()));
        }
        let id = until(Duration::from_secs(5), || {
            session.heard().split_whitespace().find(is_id).map(str::to_owned)
        });
        match op {
            Op::RunPod => self.sandbox = id,
            Op::Create => self.container = id,
            Op::Remove => self.container = None,
            _ => {}
        }
        Ok(())
    }

    /// Asks for something and waits for the answer.
    ///
    /// # Errors
    /// The error that it is.
    pub fn ask(&mut self, op: Op) -> Result<(), Failed> {
        let mut session = self.begin(op);
        self.answer(op, &mut session)
    }

    /// Whether the container's output holds a line.
    pub fn says(&self, line: &str) -> bool {
        Logs::read(&self.logs.join("c.log")).out().lines().any(|said| said == line)
    }

    /// What containerd knows of the pod: those of this name that it lists, and what it says of each.
    fn listed(&self) -> Vec<String> {
        let list = Run::crictl().args(["pods", "-q", "--no-trunc", "--name", &format!("^{}$", self.name)]);
        list.within(HANG).run().text().split_whitespace().map(str::to_owned).collect()
    }

    /// Learns what containerd knows by now of what it was asked for and has not answered.
    pub fn look(&mut self) {
        if self.sandbox.is_none() {
            self.sandbox = self.listed().into_iter().next();
        }
        if let (Some(sandbox), None) = (&self.sandbox, &self.container) {
            let list = Run::crictl().args(["ps", "-a", "-q", "--no-trunc", "--pod", sandbox]);
            self.container = list.within(HANG).run().text().split_whitespace().next().map(str::to_owned);
        }
    }

    /// What containerd says of the pod and of the container; empty if it knows none.
    fn states(&self) -> [String; 2] {
        [("inspectp", &self.sandbox), ("inspect", &self.container)].map(|(kind, id)| {
            let Some(id) = id else { return String::new() };
            let done = Run::crictl().args([kind, "-o", "json", id]).within(HANG).run();
            let status = serde_json::from_str::<Value>(&done.text()).unwrap_or_default();
            status["status"]["state"].as_str().unwrap_or_default().to_owned()
        })
    }

    /// Whether containerd knows that the pod has come to its end, and the container with it.
    pub fn is_seen_to_have_ended(&self) -> bool {
        let [pod, container] = self.states();
        pod != "SANDBOX_READY" && container != "CONTAINER_RUNNING"
    }

    /// Whether containerd knows nothing of the pod any more: it has been removed, as it was asked to.
    pub fn is_gone(&self) -> bool {
        self.states().iter().all(String::is_empty)
    }

    /// Whether a container of the pod, the one that there is or a new one, can be talked to.
    ///
    /// # Errors
    /// What does not work.
    pub fn works(&mut self) -> Result<(), Failed> {
        match self.states()[1].as_str() {
            "CONTAINER_RUNNING" => {}
            "CONTAINER_CREATED" => self.ask(Op::Start)?,
            state => {
                if !state.is_empty() {
                    self.ask(Op::Remove)?;
                }
                self.ask(Op::Create)?;
                self.ask(Op::Start)?;
            }
        }
        self.ask(Op::Exec)
    }

    /// Removes the pod, whatever state it is in; how long that took.
    ///
    /// # Errors
    /// Why it cannot be removed.
    pub fn remove(&mut self) -> Result<Duration, Failed> {
        let began = Instant::now();
        for id in self.listed() {
            let mut session = Session::pipes(&Run::crictl().args(["rmp", "-f", &id]));
            self.answer(Op::RemovePod, &mut session)?;
        }
        Ok(began.elapsed())
    }

    /// Takes away what a kubelet has made for the pod.
    pub fn forget(&self) {
        // What does not go is found as a part of the footprint.
        let _ = fs::remove_dir_all(&self.folder);
        let _ = fs::remove_dir_all(&self.logs);
        until(Duration::from_secs(10), || {
            (fs::remove_dir(self.cgroup()).is_ok() || !self.cgroup().exists()).then_some(())
        });
    }
}

/// An answer that is none, or an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failed {
    /// No answer in time.
    Hang(Op),
    /// containerd's words.
    Error(String),
}

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Hang(op) => write!(f, "no answer to {op:?} within {} s", HANG.as_secs()),
            Self::Error(words) => {
                // Behind when crictl says it, and how grave it is.
                let words = words.lines().last().unwrap_or_default();
                f.write_str(words.split_once("msg=").map_or(words, |(_, words)| words.trim_matches('"')))
            }
        }
    }
}

fn is_id(word: &&str) -> bool {
    word.len() == 64 && word.bytes().all(|byte| byte.is_ascii_hexdigit())
}
