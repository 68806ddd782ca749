//! One request, in a process of its own.

use std::fs::File;
use std::io::{BufReader, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::error::LibcontainerError;
use libcontainer::syscall::syscall::SyscallType;
use rustix::process::{Pid, Signal, kill_process};

use super::console::Keeper;
use super::exec;
use super::executor::GuestExecutor;
use super::join::Exec;
use super::keyring;
use super::limits;
use super::message::{Console, Reply, Request, failure, receive, send};
use super::pause;
use crate::{error, paths};

/// Reads the request from `socket`, carries it out, answers, and waits for the agent's word that it has noted the process.
pub(super) fn run(socket: &OwnedFd) {
    let Ok((request, fds)) = receive::<Request>(socket) else { return };
    // libcontainer draws the names of its sockets from a generator seeded by the clock, which two builders may share.
    fastrand::seed(u64::from(std::process::id()));
    match build(&request, fds, socket) {
        Ok(pid) => {
            // Only what the agent has noted is handed over to it.
            let noted = send(socket, &Reply::Pid(pid), &[]).and_then(|()| receive::<()>(socket));
            if let (Err(_), Some(pid)) = (noted, Pid::from_raw(pid)) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        // Nobody may be listening.
        Err(text) => drop(send(socket, &failure(text), &[])),
    }
}

fn build(request: &Request, fds: Vec<OwnedFd>, socket: &OwnedFd) -> Result<i32, String> {
    if let Request::Create { id, .. } | Request::Exec { id, .. } = request {
        keyring::join(id).map_err(|error| format!("join the container's session keyring: {error}"))?;
    }
    match request {
        Request::Pause { ids } => {
            pause::start(ids.as_ref()).map_err(|error| format!("make the pod's PID namespace: {error}"))
        }
        Request::Create { id, bundle, profile, limits, console } => {
            limits::raise(limits).map_err(|error| format!("raise the resource limits: {error}"))?;
            let (builder, keeper) = prepare(id, bundle, profile.clone(), *console, fds, socket)?;
            let built = builder.as_init(bundle).with_systemd(false).build();
            keeper.finish();
            let container = built.map_err(|error| readable(&error))?;
            container.pid().map(|pid| pid.as_raw()).ok_or_else(|| "the container has no process".to_owned())
        }
        Request::Exec { id, bundle, init, user_namespace, personality, console } => {
            let mut fds = fds.into_iter();
            let (Some(first), Some(process)) = (fds.next(), fds.next()) else {
                return Err("the request came without its descriptors".to_owned());
            };
            let process = serde_json::from_reader(BufReader::new(File::from(process)))
                .map_err(|error| format!("read the process: {error}"))?;
            let exec = Exec {
                init: first,
                user_namespace: *user_namespace,
                process,
                home: String::new(),
                stdio: if console.is_none() { Some(stdio(fds)?) } else { None },
                console: *console,
                personality: *personality,
                filter: read_filter(&bundle.join("seccomp.bpf"))?,
            };
            exec::start(id, *init, exec, socket)
        }
    }
}

/// A container's builder, with descriptors, terminal and executor.
fn prepare(
    id: &str,
    bundle: &Path,
    profile: Option<String>,
    console: Option<Console>,
    fds: Vec<OwnedFd>,
    socket: &OwnedFd,
) -> Result<(ContainerBuilder, Keeper), String> {
    let filter = read_filter(&bundle.join("seccomp.bpf"))?;
    let keeper =
        Keeper::start(console, socket.as_fd()).map_err(|error| format!("make a terminal: {error}"))?;
    let executor = GuestExecutor::new(filter, profile, keeper.gate());
    let mut builder = ContainerBuilder::new(id.to_owned(), SyscallType::default())
        .with_root_path(paths::RUNTIME)
        .map_err(|error| readable(&error))?
        .with_executor(executor)
        .with_console_socket(keeper.path());
    if console.is_none() {
        let [stdin, stdout, stderr] = stdio(fds)?;
        builder = builder.with_stdin(stdin).with_stdout(stdout).with_stderr(stderr);
    }
    Ok((builder, keeper))
}

fn stdio(fds: impl IntoIterator<Item = OwnedFd>) -> Result<[OwnedFd; 3], String> {
    let fds: Vec<OwnedFd> = fds.into_iter().collect();
    fds.try_into().map_err(|_| "the request came without its three standard descriptors".to_owned())
}

fn read_filter(path: &Path) -> Result<Option<Vec<u8>>, String> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("open {}: {error}", path.display())),
    };
    let mut filter = Vec::new();
    file.read_to_end(&mut filter).map_err(|error| format!("read {}: {error}", path.display()))?;
    Ok(Some(filter))
}

/// libcontainer's error as a person wants it: the executor's own words alone when it was they that failed, or the file that
/// did not take a limit, and nothing of what taking back the rest could not find.
fn readable(error: &LibcontainerError) -> String {
    shortened(&error::chain(error)).to_owned()
}

fn shortened(text: &str) -> &str {
    let text = text.split_once(". error during cleanup: ").map_or(text, |(error, _)| error);
    let known = ["exec: \"", "failed to write "].iter().find_map(|words| text.find(words));
    known.and_then(|at| text.get(at..)).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_the_executors_words_or_the_whole_without_its_cleanup() {
        let text =
            "failed to create container: exec: \"x\": not found. error during cleanup: no such directory";
        assert_eq!(shortened(text), "exec: \"x\": not found");
        assert_eq!(shortened("failed: no room. error during cleanup: other"), "failed: no room");
        let limit = "failed: intermediate process error cgroup error: io error: failed to write 100 100000 to /cpu.max: no";
        assert_eq!(shortened(limit), "failed to write 100 100000 to /cpu.max: no");
    }
}
