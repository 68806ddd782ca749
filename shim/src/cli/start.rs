//! `start`: answers with the address of the shim that serves a container, after starting it if it is a sandbox's.
//!
//! containerd reads both outputs to their ends, so the daemon gets neither, and nothing but the answer is written: an
//! address, or what 2.3 calls a bootstrap result.

use std::fs;
use std::io::{self, PipeReader};
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ravelin_policy::SANDBOX_CONTROLLER;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::bootstrap::{self, Bootstrap};
use super::{Args, CliError, check, print};
use crate::config::Config;
use crate::error::bounded;
use crate::spec::{self, Kind};
use crate::state::{self, StateDir};

/// Where shims' sockets are unless containerd says otherwise.
const SOCKET_DIR: &str = "/run/containerd/s";
/// The version that stands for a shim whose sandboxes are driven as tasks: containerd says goodbye after each of its tasks.
const TASK_API: u32 = 2;
/// The version that stands for a shim whose end containerd's sandbox API decides.
const SANDBOX_API: u32 = 3;
/// Longest error of the daemon's that is passed on, in bytes.
const MAX_WORDS: usize = 2048;

pub(super) fn run(args: &Args) -> Result<(), CliError> {
    check(args)?;
    let input = bootstrap::read_stdin();
    let input = bootstrap::parse(&input, &args.id, &args.namespace);
    let bundle = std::env::current_dir().map_err(CliError::system("find the bundle"))?;
    let socket_dir = PathBuf::from(input.socket_dir.as_deref().unwrap_or(SOCKET_DIR));
    if is_of_the_sandbox_api(&bundle) {
        let config = Config::of_runtime(input.config.as_deref())?;
        let address = start_daemon(args, &input, &socket_dir, config.call_deadline())?;
        return print(&result(SANDBOX_API, &address));
    }
    let spec = spec::load(&bundle)?;
    let address = match spec::kind(&spec)? {
        Kind::Container { sandbox_id } => {
            let path = socket_path(&socket_dir, args, &sandbox_id);
            if UnixStream::connect(&path).is_err() {
                return Err(CliError::NoSandbox { sandbox_id, id: args.id.clone() });
            }
            address(&path)
        }
        Kind::Sandbox => {
            // The daemon reads it again; here its errors reach the user.
            let config = Config::of_runtime(input.config.as_deref())?;
            start_daemon(args, &input, &socket_dir, config.call_deadline())?
        }
    };
    // containerd 1.6 and 1.7 look for it when they restart.
    let file = bundle.join("address");
    fs::write(&file, &address).map_err(CliError::system("write the shim's address into the bundle"))?;
    // 1.6 understands nothing but the address, which 2.0 to 2.2 understand too; only 2.3 says which it is.
    if input.is_params { print(&result(TASK_API, &address)) } else { print(address.as_bytes()) }
}

/// containerd's `BootstrapResult` as JSON, over ttrpc.
fn result(version: u32, address: &str) -> Vec<u8> {
    json!({ "version": version, "address": address, "protocol": "ttrpc" }).to_string().into_bytes()
}

/// Whether containerd's sandbox API begins with this bundle. Such a bundle holds no spec; and what is answered must say
/// that the shim knows the API, which containerd versions without it do not understand.
fn is_of_the_sandbox_api(bundle: &Path) -> bool {
    // .../io.containerd.sandbox.controller.v1.shim/<namespace>/<id>
    bundle.ancestors().nth(2).and_then(Path::file_name).is_some_and(|name| name == SANDBOX_CONTROLLER)
}

/// The socket of a sandbox's shim, as containerd's own shims name it.
fn socket_path(directory: &Path, args: &Args, id: &str) -> PathBuf {
    let name = Path::new(&args.address).join(&args.namespace).join(id);
    let digest = Sha256::digest(name.as_os_str().as_encoded_bytes());
    directory.join(digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}

fn address(path: &Path) -> String {
    format!("unix://{}", path.display())
}

/// Starts the daemon, which must serve within `patience`; its address. Whatever is made the daemon makes: should this process be
/// killed, there is either nothing, or a daemon that takes it away when nobody wants anything of it.
fn start_daemon(
    args: &Args,
    input: &Bootstrap,
    socket_dir: &Path,
    patience: Duration,
) -> Result<String, CliError> {
    let path = socket_path(socket_dir, args, &args.id);
    let listen = |source| CliError::Listen { path: path.clone(), source };
    fs::DirBuilder::new().recursive(true).mode(0o711).create(socket_dir).map_err(listen)?;
    if UnixStream::connect(&path).is_ok() {
        return Err(CliError::Running(args.id.clone()));
    }
    let address = address(&path);
    let spawned = spawn(args, input, &address);
    let (mut child, errors) = spawned.map_err(CliError::system("start the shim's daemon"))?;
    let waited = wait_until_it_serves(errors, patience).and_then(|()| still_serves(&mut child));
    if waited.is_err() {
        give_up(&mut child, &path, &StateDir::new(Path::new(state::ROOT), &args.id));
    }
    waited.map(|()| address)
}

/// Ends a daemon that does not serve, and takes away what it has made: containerd, whose start has failed, calls no `delete`.
fn give_up(daemon: &mut Child, socket: &Path, directory: &StateDir) {
    // It may have ended by itself.
    let _ = daemon.kill();
    let _ = daemon.wait();
    // Nobody has asked it for a machine yet, so there is no more than this; the error that is on its way says enough.
    let _ = fs::remove_file(socket);
    let _ = directory.remove();
}

/// Makes sure that the daemon's standard error output ended because it serves and has put another in its place, and not
/// because something killed it.
fn still_serves(daemon: &mut Child) -> Result<(), CliError> {
    let stderr = fs::read_link(format!("/proc/{}/fd/2", daemon.id()));
    if stderr.is_ok_and(|file| file.as_os_str() == "/dev/null") {
        return Ok(());
    }
    let _ = daemon.kill();
    let status = daemon.wait().map_err(CliError::system("wait for the shim's daemon"))?;
    Err(CliError::Daemon(format!("it ended before it served ({status})")))
}

/// Reads the daemon's standard error output, which ends when the daemon serves; before that it holds nothing but the
/// reason why it does not.
fn wait_until_it_serves(errors: impl AsFd, patience: Duration) -> Result<(), CliError> {
    let (said, ended) = bootstrap::read_within(errors, patience);
    let said = String::from_utf8_lossy(&said);
    match (said.trim(), ended) {
        ("", true) => Ok(()),
        ("", false) => Err(CliError::Daemon(format!(
            "it does not serve after {} s (call_seconds in [timeouts] of ravelin.toml)",
            patience.as_secs()
        ))),
        (words, _) => Err(CliError::Daemon(bounded(words, MAX_WORDS))),
    }
}

fn spawn(args: &Args, input: &Bootstrap, address: &str) -> io::Result<(Child, PipeReader)> {
    let (errors, stderr) = io::pipe()?;
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(["-namespace", &args.namespace, "-id", &args.id, "-address", &args.address])
        .args(["-publish-binary", &args.publish_binary, "-socket", address])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(stderr)
        .env_clear();
    if args.debug || input.debug {
        command.arg("-debug");
    }
    if let Some(config) = &input.config {
        command.arg("-config").arg(config);
    }
    // containerd passes its whole environment; only this concerns us.
    for name in ["PATH", "TTRPC_ADDRESS", "RUST_BACKTRACE"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    if let (None, Some(ttrpc)) = (std::env::var_os("TTRPC_ADDRESS"), &input.ttrpc_address) {
        command.env("TTRPC_ADDRESS", ttrpc);
    }
    let score = oom_score();
    // SAFETY: between fork and exec only async-signal-safe system calls are made, on plain integers.
    unsafe {
        command.pre_exec(move || {
            if libc::setsid() < 0 {
                return Err(io::Error::last_os_error());
            }
            // Whatever was inherited besides is closed.
            libc::syscall(
                libc::SYS_close_range,
                libc::STDERR_FILENO + 1,
                libc::c_uint::MAX,
                libc::CLOSE_RANGE_CLOEXEC,
            );
            Ok(())
        });
    }
    let child = command.spawn()?;
    // It holds our copy of the pipe's other end.
    drop(command);
    if let Some(score) = score {
        // As containerd does for its own shims: the kernel takes a shim before containerd.
        let _ = fs::write(format!("/proc/{}/oom_score_adj", child.id()), score.to_string());
    }
    Ok((child, errors))
}

/// One more than containerd's, whose child this process is.
fn oom_score() -> Option<i32> {
    let own: i32 = fs::read_to_string("/proc/self/oom_score_adj").ok()?.trim().parse().ok()?;
    Some(own.saturating_add(1).min(1000))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    #[test]
    fn a_daemon_that_cannot_serve_says_why_and_one_that_serves_says_nothing() {
        let (reader, writer) = io::pipe().unwrap();
        drop(writer);
        wait_until_it_serves(reader, PATIENCE).unwrap();
        let (reader, mut writer) = io::pipe().unwrap();
        writeln!(writer, "cannot write the pod's state: No space left on device").unwrap();
        drop(writer);
        let error = wait_until_it_serves(reader, PATIENCE).unwrap_err().to_string();
        assert!(error.contains("No space left on device"), "{error}");
        let (reader, _writer) = io::pipe().unwrap();
        let error = wait_until_it_serves(reader, Duration::ZERO).unwrap_err().to_string();
        assert!(error.contains("call_seconds"), "{error}");
    }

    #[test]
    fn a_daemon_that_is_killed_before_it_serves_is_not_taken_for_one_that_serves() {
        let mut daemon = Command::new("sleep").arg("1000").stderr(Stdio::null()).spawn().unwrap();
        still_serves(&mut daemon).unwrap();
        daemon.kill().unwrap();
        daemon.wait().unwrap();
        let mut daemon =
            Command::new("sh").args(["-c", "kill -9 $$"]).stderr(Stdio::piped()).spawn().unwrap();
        wait_until_it_serves(daemon.stderr.take().unwrap(), PATIENCE).unwrap();
        let error = still_serves(&mut daemon).unwrap_err().to_string();
        assert!(error.contains("signal: 9"), "{error}");
    }

    #[test]
    fn a_daemon_that_does_not_serve_leaves_nothing() {
        let root = tempfile::tempdir().unwrap();
        let directory = StateDir::new(root.path(), "abc");
        directory.save(&state::State::default()).unwrap();
        let socket = root.path().join("socket");
        fs::write(&socket, "").unwrap();
        let mut daemon = Command::new("sleep").arg("1000").spawn().unwrap();
        give_up(&mut daemon, &socket, &directory);
        assert!(!daemon.wait().unwrap().success());
        assert!(!directory.path().exists() && !socket.exists());
    }

    #[test]
    fn a_bundle_of_the_sandbox_api_is_known_by_its_place() {
        let is = |path: &str| is_of_the_sandbox_api(Path::new(path));
        assert!(is("/run/containerd/io.containerd.sandbox.controller.v1.shim/k8s.io/abc"));
        assert!(!is("/run/containerd/io.containerd.runtime.v2.task/k8s.io/abc"));
        assert!(!is("/abc"));
    }

    #[test]
    fn a_container_finds_its_sandboxs_socket_and_no_other() {
        let args = |address: &str, id: &str| Args {
            namespace: "k8s.io".into(),
            address: address.into(),
            id: id.into(),
            ..Args::default()
        };
        let directory = Path::new("/run/containerd/s");
        let sandbox = socket_path(directory, &args("/run/c.sock", "pod"), "pod");
        assert_eq!(socket_path(directory, &args("/run/c.sock", "container"), "pod"), sandbox);
        assert_ne!(socket_path(directory, &args("/run/d.sock", "container"), "pod"), sandbox);
        assert!(address(&sandbox).len() <= 107);
    }
}
