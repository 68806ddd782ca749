//! One request, in a process of its own.

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::error::LibcontainerError;
use libcontainer::syscall::syscall::SyscallType;

use super::console::Keeper;
use super::executor::GuestExecutor;
use super::message::{Console, Reply, Request, receive, send};
use super::pause;
use crate::{error, paths};

/// Reads the request from `socket`, carries it out, answers, and waits until the agent closes its end.
pub(super) fn run(socket: &OwnedFd) {
    let Ok((request, fds)) = receive::<Request>(socket) else { return };
    // libcontainer draws the names of its sockets from a generator seeded by the clock, which two builders may share.
    fastrand::seed(u64::from(std::process::id()));
    let reply = match build(&request, fds, socket) {
        Ok(pid) => Reply::Pid(pid),
        Err(text) => Reply::Error(text),
    };
    if send(socket, &reply, &[]).is_ok() {
        // The agent notes the pid, then closes: only then may this process exit and hand the new one over.
        let _ = receive::<()>(socket);
    }
}

fn build(request: &Request, fds: Vec<OwnedFd>, socket: &OwnedFd) -> Result<i32, String> {
    match request {
        Request::Pause => pause::start().map_err(|error| format!("make the pod's PID namespace: {error}")),
        Request::Create { id, bundle, console } => {
            let (builder, keeper) = prepare(id, bundle, *console, fds, socket)?;
            let built = builder.as_init(bundle).with_systemd(false).build();
            keeper.finish();
            let container = built.map_err(|error| readable(&error))?;
            container.pid().map(|pid| pid.as_raw()).ok_or_else(|| "the container has no process".to_owned())
        }
        Request::Exec { id, bundle, process, console } => {
            let (builder, keeper) = prepare(id, bundle, *console, fds, socket)?;
            let built = builder
                .as_tenant()
                .with_detach(true)
                .with_ignore_paused(true)
                .with_process(Some(process.clone()))
                .build();
            keeper.finish();
            built.map(|pid| pid.as_raw()).map_err(|error| readable(&error))
        }
    }
}

/// What container and exec have in common: descriptors, terminal, executor.
fn prepare(
    id: &str,
    bundle: &Path,
    console: Option<Console>,
    fds: Vec<OwnedFd>,
    socket: &OwnedFd,
) -> Result<(ContainerBuilder, Keeper), String> {
    let filter = read_filter(&bundle.join("seccomp.bpf"))?;
    let keeper =
        Keeper::start(console, socket.as_fd()).map_err(|error| format!("make a terminal: {error}"))?;
    let executor = GuestExecutor::new(filter, keeper.gate());
    let mut builder = ContainerBuilder::new(id.to_owned(), SyscallType::default())
        .with_root_path(paths::RUNTIME)
        .map_err(|error| readable(&error))?
        .with_executor(executor)
        .with_console_socket(keeper.path());
    if console.is_none() {
        let mut fds = fds.into_iter();
        let (Some(stdin), Some(stdout), Some(stderr)) = (fds.next(), fds.next(), fds.next()) else {
            return Err("the request came without its three standard descriptors".to_owned());
        };
        builder = builder.with_stdin(stdin).with_stdout(stdout).with_stderr(stderr);
    }
    Ok((builder, keeper))
}

fn read_filter(path: &Path) -> Result<Option<Vec<u8>>, String> {
    let mut file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("open {}: {error}", path.display())),
    };
    let mut filter = Vec::new();
    file.read_to_end(&mut filter).map_err(|error| format!("read {}: {error}", path.display()))?;
    Ok(Some(filter))
}

/// libcontainer's error as a person wants it: the executor's own words alone when it was they that failed.
fn readable(error: &LibcontainerError) -> String {
    let text = error::chain(error);
    match text.find("exec: \"") {
        Some(at) => text.get(at..).unwrap_or(&text).to_owned(),
        None => text,
    }
}
