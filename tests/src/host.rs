//! The host under test, and whose turn it is on it.

use std::fs;
use std::io::Write;
use std::ops::Deref;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use crate::{Pod, PodSpec, Run, eventually, leaks, until};

/// Where the host says which process containerd is, and which program.
const PID_FILE: &str = "/run/containerd.pid";
const COMMAND_FILE: &str = "/run/containerd.command";

/// Tests share the host; one that breaks something of the whole host has it alone.
static TURN: RwLock<()> = RwLock::new(());

static COMMON: Mutex<Option<Arc<Pod<'static>>>> = Mutex::new(None);

/// The runtime handler that the pods ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handler {
    /// Ravelin, behind what containerd takes for a pause container.
    Ravelin,
    /// Ravelin through containerd's sandbox API.
    RavelinSandbox,
    /// runc: proves the tests themselves, and gives the behaviour to compare with.
    Runc,
}

/// The line of containerd that runs on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Containerd {
    /// Debian 12's.
    V1_6,
    /// The newest stable line.
    V2_3,
}

/// The right to use the host, held for the length of a test.
#[derive(Debug)]
pub struct Host {
    _turn: Turn,
    since: Instant,
}

/// A test's part in the pod of [`Host::common_pod`].
#[derive(Debug)]
pub struct CommonPod(Arc<Pod<'static>>);

impl Deref for CommonPod {
    type Target = Pod<'static>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl Drop for CommonPod {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // Perhaps the pod is what is broken: the next test starts another.
            let mut common = COMMON.lock().unwrap_or_else(PoisonError::into_inner);
            drop(common.take_if(|common| Arc::ptr_eq(common, &self.0)));
        }
    }
}

#[derive(Debug)]
enum Turn {
    Shared { _guard: RwLockReadGuard<'static, ()> },
    Alone { _guard: RwLockWriteGuard<'static, ()> },
}

impl Host {
    /// Waits for the host, beside other tests.
    pub fn shared() -> Self {
        let guard = TURN.read().unwrap_or_else(PoisonError::into_inner);
        Self { _turn: Turn::Shared { _guard: guard }, since: Instant::now() }
    }

    /// Waits for the host without any other test on it.
    pub fn alone() -> Self {
        let guard = TURN.write().unwrap_or_else(PoisonError::into_inner);
        // Nobody uses it now.
        drop(COMMON.lock().unwrap_or_else(PoisonError::into_inner).take());
        Self { _turn: Turn::Alone { _guard: guard }, since: Instant::now() }
    }

    /// [`Host::shared`] if the handler is Ravelin; else says that the test is left out.
    pub fn shared_with_ravelin() -> Option<Self> {
        only_ravelin().then(Self::shared)
    }

    /// [`Host::alone`] if the handler is Ravelin; else says that the test is left out.
    pub fn alone_with_ravelin() -> Option<Self> {
        only_ravelin().then(Self::alone)
    }

    /// A pod to be started, named after the running test.
    #[must_use]
    pub fn pod(&self) -> PodSpec<'_> {
        PodSpec::new()
    }

    /// The pod that tests have in common which need no more than containers in some pod: a pod takes a host that is emulated
    /// longer than most of what is tested in it. The first test starts it; it is removed before a test has the host alone, and
    /// after one that failed. Its containers go with their tests.
    #[must_use]
    #[track_caller]
    pub fn common_pod(&self) -> CommonPod {
        let mut common = COMMON.lock().unwrap_or_else(PoisonError::into_inner);
        CommonPod(Arc::clone(common.get_or_insert_with(|| Arc::new(PodSpec::new().start().in_common()))))
    }

    /// Panics when anything of any pod is on the host. Only for a test that has the host alone.
    #[track_caller]
    pub fn assert_clean(&self) {
        let mut left = Vec::new();
        let clean = until(Duration::from_secs(60), || {
            left = leaks::of_any_pod();
            left.is_empty().then_some(())
        });
        assert!(clean.is_some(), "left on the host without a pod:\n  {}", left.join("\n  "));
    }

    /// The processes on the host whose command line names `program`. What they are is certain only for a test that has the host alone.
    #[must_use]
    pub fn processes(&self, program: &str) -> Vec<u32> {
        leaks::pids().into_iter().filter(|&pid| leaks::command_line(pid).contains(program)).collect()
    }

    /// Ends containerd with this signal and waits until it is gone. Only for a test that has the host alone.
    #[track_caller]
    pub fn stop_containerd(&self, signal: &str) {
        let pid = fs::read_to_string(PID_FILE).expect("the host says which process containerd is");
        let pid = pid.trim();
        Run::new("kill").args([&format!("-{signal}"), pid]).ok();
        eventually("containerd ends", || {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            (stat.is_empty() || stat.contains(") Z ")).then_some(())
        });
    }

    /// Starts containerd and waits until it answers.
    #[track_caller]
    pub fn start_containerd(&self) {
        let program = fs::read_to_string(COMMAND_FILE).expect("the host says which program containerd is");
        let log =
            fs::File::options().append(true).create(true).open("/var/log/containerd.log").expect("a log");
        let mut command = Command::new(program.trim());
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a descriptor can be duplicated"))
            .stderr(log);
        let mut child = command.process_group(0).spawn().expect("containerd can be started");
        fs::write(PID_FILE, child.id().to_string()).expect("the process id can be written");
        // Somebody has to take its exit status one day.
        std::thread::spawn(move || child.wait());
        eventually("containerd answers", || (Run::crictl().arg("info").run().code == 0).then_some(()));
    }

    /// The handler under test: `RAVELIN_HANDLER`, by default Ravelin.
    #[must_use]
    pub fn handler() -> Handler {
        match std::env::var("RAVELIN_HANDLER").as_deref() {
            Ok("runc") => Handler::Runc,
            Ok("ravelin-sandbox") => Handler::RavelinSandbox,
            Ok("ravelin") | Err(_) => Handler::Ravelin,
            Ok(other) => panic!("RAVELIN_HANDLER={other} is none of ravelin, ravelin-sandbox and runc"),
        }
    }

    /// The containerd under test: `CONTAINERD_VERSION`, or `CONTAINERD` as the emulated host says it, by default 2.3.
    #[must_use]
    pub fn containerd() -> Containerd {
        let version = std::env::var("CONTAINERD_VERSION").or_else(|_| std::env::var("CONTAINERD"));
        match version.as_deref() {
            Ok("1.6") => Containerd::V1_6,
            Ok("2.3") | Err(_) => Containerd::V2_3,
            Ok(other) => panic!("containerd {other} is neither 1.6 nor 2.3"),
        }
    }

    /// Whether this is a run of `make test-all` (`RAVELIN_WHOLE=1`), in which tests take as much as they can; `make test` has an hour.
    #[must_use]
    pub fn whole() -> bool {
        std::env::var("RAVELIN_WHOLE").as_deref() == Ok("1")
    }

    /// Whether the host's clock is its own and may be set. A direct host shares it with the machine that it is on.
    #[must_use]
    pub fn owns_its_clock() -> bool {
        std::env::var("WHERE").as_deref() != Ok("direct")
    }

    /// Whether the host's cgroups are of version 2.
    #[must_use]
    pub fn has_cgroup2() -> bool {
        Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
    }
}

impl Handler {
    /// Whether it is Ravelin, in whichever way.
    #[must_use]
    pub fn is_ravelin(self) -> bool {
        self != Self::Runc
    }

    /// The handler's name in containerd's configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ravelin => "ravelin",
            Self::RavelinSandbox => "ravelin-sandbox",
            Self::Runc => "runc",
        }
    }
}

impl Drop for Host {
    /// Notes how long the test had the host, for who wants to make the tests faster.
    fn drop(&mut self) {
        let thread = std::thread::current();
        let line = format!("{:6.1} s {}\n", self.since.elapsed().as_secs_f32(), thread.name().unwrap_or("?"));
        let log = fs::File::options().append(true).create(true).open("/var/log/e2e-times.log");
        // A missing log must not fail a test.
        let _ = log.and_then(|mut log| log.write_all(line.as_bytes()));
    }
}

fn only_ravelin() -> bool {
    let ravelin = Host::handler().is_ravelin();
    if !ravelin {
        println!("left out: it speaks of the microVM, and the handler is {}", Host::handler().name());
    }
    ravelin
}
