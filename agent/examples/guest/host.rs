//! The host's side, in small.

use std::sync::atomic::{AtomicU64, Ordering};

use hyper_util::rt::TokioIo;
use ravelin_proto::agent as api;
use ravelin_proto::agent::agent_client::AgentClient;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

pub type Client = AgentClient<Channel>;

/// Whether the pod of this guest has a user namespace: the guest was booted with the variable `USER_NAMESPACE`.
pub struct UserNamespace;
pub const USER_NAMESPACE: UserNamespace = UserNamespace;
/// The guest's id of that namespace's root, and how many ids it has.
pub const FIRST_ID: u32 = 100_000;
pub const IDS: u32 = 65_536;

impl UserNamespace {
    pub fn is_set(&self) -> bool {
        std::env::var("USER_NAMESPACE").is_ok_and(|value| value == "yes")
    }

    /// As the host asks for it.
    pub fn asked(&self) -> Option<api::UserNamespace> {
        let range = Some(api::IdRange { first: FIRST_ID, size: IDS });
        self.is_set().then_some(api::UserNamespace { users: range, groups: range })
    }
}

pub async fn connect() -> Client {
    let mut tries = 0;
    loop {
        let connector =
            tower::service_fn(|_| async { UnixStream::connect(crate::CONTROL).await.map(TokioIo::new) });
        match Endpoint::from_static("http://guest").connect_with_connector(connector).await {
            Ok(channel) => return AgentClient::new(channel),
            Err(error) if tries > 1000 => panic!("{error}"),
            Err(_) => tries += 1,
        }
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
}

pub async fn stream() -> (u64, UnixStream) {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    // Every case is a process of its own.
    let id = u64::from(std::process::id()) << 32 | NEXT.fetch_add(1, Ordering::Relaxed);
    let mut stream = UnixStream::connect(crate::STREAMS).await.unwrap();
    stream.write_all(&id.to_le_bytes()).await.unwrap();
    (id, stream)
}

pub struct Streams {
    pub stdio: api::Stdio,
    pub stdin: UnixStream,
    pub stdout: UnixStream,
    pub stderr: UnixStream,
}

impl Streams {
    pub async fn open(terminal: bool) -> Self {
        let (stdin_id, stdin) = stream().await;
        let (stdout_id, stdout) = stream().await;
        let (stderr_id, stderr) = stream().await;
        let stderr_id = if terminal { 0 } else { stderr_id };
        let stdio = api::Stdio { stdin: stdin_id, stdout: stdout_id, stderr: stderr_id, terminal };
        Self { stdio, stdin, stdout, stderr }
    }

    pub async fn out(&mut self) -> String {
        text(&mut self.stdout).await
    }

    pub async fn err(&mut self) -> String {
        text(&mut self.stderr).await
    }
}

async fn text(stream: &mut UnixStream) -> String {
    let mut all = Vec::new();
    let read = stream.read_to_end(&mut all);
    tokio::time::timeout(std::time::Duration::from_secs(60), read).await.expect("the stream ends").unwrap();
    String::from_utf8_lossy(&all).into_owned()
}

const CAPABILITIES: &str = r#"["CAP_CHOWN","CAP_DAC_OVERRIDE","CAP_FSETID","CAP_FOWNER","CAP_MKNOD","CAP_NET_RAW",
    "CAP_SETGID","CAP_SETUID","CAP_SETFCAP","CAP_SETPCAP","CAP_NET_BIND_SERVICE","CAP_SYS_CHROOT","CAP_KILL",
    "CAP_AUDIT_WRITE"]"#;

pub fn process(args: &[&str]) -> serde_json::Value {
    let capabilities: serde_json::Value = serde_json::from_str(CAPABILITIES).unwrap();
    serde_json::json!({
        "user": {"uid": 0, "gid": 0}, "args": args, "cwd": "/",
        "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
        "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities}
    })
}

/// What containerd's CRI plugin makes of a plain container.
pub fn spec(args: &[&str]) -> serde_json::Value {
    let mut spec = plain_spec(args);
    if USER_NAMESPACE.is_set() {
        let mapping = serde_json::json!([{"containerID": 0, "hostID": FIRST_ID, "size": IDS}]);
        spec["linux"]["namespaces"].as_array_mut().unwrap().push(serde_json::json!({"type": "user"}));
        spec["linux"]["uidMappings"] = mapping.clone();
        spec["linux"]["gidMappings"] = mapping;
    }
    spec
}

fn plain_spec(args: &[&str]) -> serde_json::Value {
    serde_json::json!({
        "ociVersion": "1.1.0",
        "process": process(args),
        "root": {"path": ""},
        "hostname": "ignored",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
             "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs",
             "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
             "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]}
        ],
        "linux": {
            "namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"},
                           {"type": "network"}],
            "resources": {"devices": [{"allow": false, "access": "rwm"}],
                          "cpu": {"shares": 2, "quota": 200000, "period": 100000}},
            "maskedPaths": ["/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
                            "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware",
                            "/proc/scsi"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
        }
    })
}
