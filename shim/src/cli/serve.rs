//! The daemon: serves containerd on the socket that `start` names.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, IntoRawFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};

use super::{Args, CliError, check};
use crate::config::Config;
use crate::error::chain;
use crate::events::Publisher;
use crate::logging;
use crate::privileges::{self, Writable};
use crate::sandbox::remains;
use crate::service::Service;
use crate::state::{self, State, StateDir};
use crate::sync::runtime;

/// Time the last events have to reach containerd.
const FLUSH: Duration = Duration::from_secs(2);
/// Time containerd has to read the last answer.
const FAREWELL: Duration = Duration::from_millis(20);

pub(super) fn run(args: &Args) -> Result<(), CliError> {
    check(args)?;
    let socket = args.socket.strip_prefix("unix://").filter(|path| path.starts_with('/'));
    let socket = PathBuf::from(socket.ok_or(CliError::BadFlag("socket"))?);
    // Started by hand for a pod that lives, it must not take its place.
    if UnixStream::connect(&socket).is_ok() {
        return Err(CliError::Running(args.id.clone()));
    }
    logging::init(Path::new("log"), args.debug);
    std::panic::set_hook(Box::new(|panic| tracing::error!("the shim failed: {panic}")));
    raise_descriptor_limit();
    let directory = StateDir::new(Path::new(state::ROOT), &args.id);
    let served = begin(args, &socket, &directory).and_then(|(state, listener)| {
        let config = confine(args, &socket)?;
        let runtime = runtime().map_err(CliError::system("start the runtime"))?;
        let served = runtime.block_on(serve(args, config, listener, state, &directory));
        // No more waiting for what blocks: everything that mattered is done.
        runtime.shutdown_background();
        served
    });
    let _ = fs::remove_file(&socket);
    if let Err(error) = directory.remove() {
        tracing::warn!("cannot remove the pod's state: {error}");
    }
    if let Err(error) = &served {
        tracing::error!(sandbox = args.id, "the shim ends: {}", chain(error));
    }
    served
}

/// Writes down that there is a shim, and only then listens: whoever finds what a killed one has left finds all of it.
fn begin(args: &Args, socket: &Path, directory: &StateDir) -> Result<(State, UnixListener), CliError> {
    let bundle = std::env::current_dir().map_err(CliError::system("find the bundle"))?;
    let state = State::of_a_new_shim(&args.id, &bundle, socket);
    directory.save(&state).map_err(CliError::system("write the pod's state under /run/ravelin"))?;
    let listener = bind(socket).map_err(|source| CliError::Listen { path: socket.to_owned(), source })?;
    Ok((state, listener))
}

/// Listens on a socket that is only root's, in place of one that a killed shim left.
fn bind(path: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Reads the configuration, and gives up what the shim needs neither of root's rights nor of the node's files.
fn confine(args: &Args, socket: &Path) -> Result<Config, CliError> {
    let config =
        Config::of_runtime(Some(Path::new(&args.config)).filter(|path| !path.as_os_str().is_empty()))?;
    privileges::give_up()
        .map_err(CliError::system("give up what the shim does not need of root's rights"))?;
    for directory in [Path::new(state::ROOT), &config.storage.directory] {
        // What is not there when the shim restricts itself, it cannot write to. Whoever needs it says what is wrong with it.
        let _ = fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
    }
    let enforced = privileges::restrict(&Writable::of(&config, socket))
        .map_err(CliError::system("restrict the shim to files of its own"))?;
    if !enforced {
        tracing::debug!("the node's kernel has no Landlock: the shim may write to every file");
    }
    Ok(config)
}

/// The soft limit on descriptors is for programs that use select(2); containerd's may be as low as systemd's 1024.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    // Whoever may not raise it keeps what there is.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

/// Tells `start`, which waits for the end of our standard error output, that the daemon serves. From here on errors go
/// to the log.
///
/// # Errors
/// When nobody waits: `start` was killed, containerd has no address, and nobody will ever want anything of the daemon.
fn say_ready() -> Result<(), CliError> {
    let redirect = || -> io::Result<()> {
        let stderr = io::stderr();
        let mut waiting = [PollFd::new(&stderr, PollFlags::empty())];
        poll(&mut waiting, Some(&Timespec::default()))?;
        if waiting.iter().any(|end| end.revents().contains(PollFlags::ERR)) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let null = fs::File::options().write(true).open("/dev/null")?;
        // SAFETY: both are open descriptors; 2 is nobody's but the standard library's, which does not close it.
        if unsafe { libc::dup2(null.as_raw_fd(), 2) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    };
    redirect().map_err(CliError::system("tell containerd that the shim serves"))
}

async fn serve(
    args: &Args,
    config: Config,
    listener: UnixListener,
    state: State,
    directory: &StateDir,
) -> Result<(), CliError> {
    let catch = |kind| signal(kind).map_err(CliError::system("catch signals"));
    // A node that goes down sends SIGTERM to whatever is left after containerd.
    let (mut terminate, mut interrupt) = (catch(SignalKind::terminate())?, catch(SignalKind::interrupt())?);
    // The end of somebody's terminal is nothing to a pod. A handler that does nothing is enough while it lives.
    let _ignored = catch(SignalKind::hangup())?;
    let publisher = Publisher::start(std::env::var("TTRPC_ADDRESS").ok(), &args.namespace);
    tokio::spawn(remains::sweep(directory.clone(), config.storage.directory.clone()));
    let service = Arc::new(Service::new(config, publisher.clone(), directory.clone(), state));

    // SAFETY: the descriptor is a listening Unix socket, owned by nobody else from here on.
    let server = unsafe { ttrpc::r#async::Server::new().add_unix_listener(listener.into_raw_fd()) };
    let mut server = server.map_err(CliError::Serve)?.register_service(service.methods());
    server.start().await.map_err(CliError::Serve)?;
    say_ready()?;
    tracing::info!(sandbox = args.id, version = env!("CARGO_PKG_VERSION"), "the shim serves");

    tokio::select! {
        () = service.ended.notified() => {}
        () = service.idle() => tracing::warn!("nobody wants anything of the shim: it ends"),
        () = async { tokio::select! { _ = terminate.recv() => {} _ = interrupt.recv() => {} } } => {
            tracing::warn!(sandbox = args.id, "the shim is told to end: it ends the pod");
            service.node_goes_down().await;
        }
    }
    publisher.flush(FLUSH).await;
    tokio::time::sleep(FAREWELL).await;
    server.stop_listen().await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_of_a_killed_shim_is_replaced() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("socket");
        drop(bind(&path).unwrap());
        let _listener = bind(&path).unwrap();
        UnixStream::connect(&path).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o7777, 0o600);
    }

    #[test]
    fn a_living_shims_place_is_not_taken() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("socket");
        let _living = bind(&path).unwrap();
        let args =
            |socket: String| Args { namespace: "k8s.io".into(), id: "abc".into(), socket, ..Args::default() };
        let running = run(&args(format!("unix://{}", path.display())));
        assert!(matches!(running, Err(CliError::Running(_))), "{running:?}");
        UnixStream::connect(&path).unwrap();
        for none in [String::new(), "unix://relative".into()] {
            assert!(matches!(run(&args(none)), Err(CliError::BadFlag("socket"))));
        }
    }
}
