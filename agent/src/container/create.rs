//! Creating a container and starting it.

use std::fs;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use libcontainer::container::{Container as State, ContainerStatus};
use oci_spec::runtime::{LinuxPersonality, Spec};
use ravelin_proto::agent as api;
use rustix::process::Signal;
use tokio::time::Instant;

use super::cgroup::Cgroup;
use super::tree::Tree;
use super::{
    Container, Facts, destinations, devices, mount_options, mounts, nodes, rootfs, seccomp, spec,
    working_directory,
};
use crate::error::{AgentError, Attempt, Result, chain};
use crate::namespaces::{Ids, within};
use crate::process::{Ended, Phase};
use crate::services::Services;
use crate::spawner::{Console, Request, SpawnerError};
use crate::stdio::{self, Endpoints, Pumps};
use crate::sync::{blocking, lock};
use crate::{paths, sysctl};

/// Creates a container, down to a first process that waits to be started. It joins the PID namespace given or gets its own.
/// All of it has until `deadline`.
///
/// # Errors
///
/// Whatever a step says; nothing of the container is left then.
pub async fn create(
    services: &Arc<Services>,
    container: &Arc<Container>,
    request: api::CreateContainerRequest,
    pid_namespace: Option<PathBuf>,
    deadline: Instant,
) -> Result<u32> {
    let endpoints = Endpoints::take(&services.streams, &request.stdio.unwrap_or_default(), deadline).await?;
    {
        let _leave = services.leave_to_make(deadline).await?;
        let (services, container) = (Arc::clone(services), Arc::clone(container));
        let runtime = tokio::runtime::Handle::current();
        blocking(move || {
            let _guard = runtime.enter();
            build(&services, &container, &request, pid_namespace, endpoints, deadline)
        })
        .await?;
    }
    container.init.advance(&[Phase::Creating], Phase::Created)?;
    container
        .init
        .pid()
        .map(|pid| pid.as_raw_nonzero().get().cast_unsigned())
        .ok_or_else(|| AgentError::Failed(format!("container {} has no process", container.id)))
}

/// The blocking part.
fn build(
    services: &Arc<Services>,
    container: &Arc<Container>,
    request: &api::CreateContainerRequest,
    pid_namespace: Option<PathBuf>,
    endpoints: Endpoints,
    deadline: Instant,
) -> Result<()> {
    let id = &container.id;
    let stdio = request.stdio.unwrap_or_default();
    let parsed: Spec = serde_json::from_slice(&request.spec)
        .map_err(|error| AgentError::Invalid(format!("read the spec of container {id}: {error}")))?;
    let rules = parsed
        .linux()
        .as_ref()
        .and_then(|linux| linux.resources().as_ref())
        .and_then(|resources| resources.devices().clone())
        .unwrap_or_default();

    let namespaces = services.namespaces().map(Arc::as_ref);
    let ids = namespaces.map(|namespaces| namespaces.ids);
    if let (Some(ids), Some(process)) = (&ids, parsed.process()) {
        ids.check(process.user())?;
    }
    let rootfs = rootfs::mount(id, &request.layers, namespaces.filter(|_| request.map_layers))?;
    let mounts = parsed.mounts().as_deref().unwrap_or_default();
    let sources = mounts::resolve(id, mounts, &rootfs, &request.mounts, namespaces)?;
    let has_control = |file: &str| Path::new(paths::POD_CGROUP).join(file).exists();
    let mut completed = spec::complete(
        &parsed,
        &spec::Guest {
            id,
            rootfs: &rootfs,
            sources: &sources,
            pid_namespace,
            ids: ids.as_ref(),
            terminal: stdio.terminal,
            has_control: &has_control,
            nodes: &|| nodes::of(Path::new("/dev"), &devices::disk_majors()),
        },
    )?;
    // What the image lacks is its root's.
    let made_by = ids.map(|ids| ids.make_files()).transpose();
    let made_by = made_by.attempt(|| "make files as the pod's root".to_owned())?;
    let mut tree = Tree::new(&rootfs).attempt(|| format!("open {}", rootfs.display()))?;
    destinations::prepare(&mut tree, completed.spec.mounts_mut().as_mut().unwrap_or(&mut Vec::new()))?;
    nodes::leave_out_below_mounts(&mut completed.spec);
    if let Some(process) = completed.spec.process() {
        working_directory::make(process.cwd(), &tree)?;
    }
    drop((tree, made_by));
    if let Some(profile) = &completed.profile {
        services.profiles.load(profile, &request.apparmor_policies)?;
    }
    within(namespaces, || sysctl::apply(&completed.sysctls))?;
    let bundle = paths::container(id).join("bundle");
    write_bundle(&bundle, &completed)?;
    container.cgroup.create()?;
    if let Some(ids) = ids
        && mounts.iter().any(mount_options::is_writable_cgroup)
    {
        let (user, group) = ids.root();
        container.cgroup.delegate(user, group)?;
    }
    devices::enforce(container.cgroup.path(), &rules)?;
    services.oom.add(id);

    let process = completed.spec.process().as_ref();
    let uid = of_the_guest(ids.as_ref(), process.map_or(0, |process| process.user().uid()))?;
    *lock(&container.facts) = Facts {
        bundle: bundle.clone(),
        oom_score_adj: process.and_then(|process| process.oom_score_adj()).unwrap_or(0),
        filtered: completed.seccomp.is_some(),
        personality: completed
            .spec
            .linux()
            .as_ref()
            .and_then(|linux| linux.personality().as_ref())
            .map(LinuxPersonality::domain),
        ids,
        defaults: parsed.process().clone().unwrap_or_default(),
    };
    let console = stdio.terminal.then(|| Console { size: console_size(process), uid });
    let limits =
        process.filter(|_| ids.is_some()).and_then(|process| process.rlimits().clone()).unwrap_or_default();
    let request = Request::Create { id: id.clone(), bundle, profile: completed.profile, limits, console };
    let launch = Launch { request, fds: &[], uid, endpoints, deadline };
    // The container's own count goes with what a failed creation leaves.
    let oom_kills = Cgroup::of_the_pod().oom_kills();
    run(services, container, &container.init, "", launch).map_err(|error| {
        // All that the builder sees is a process that says nothing. Its words stay: the kill may have been another container's.
        let killed = Cgroup::of_the_pod().oom_kills() > oom_kills;
        let cause = if killed { "its first process was OOM-killed (memory limit too low?): " } else { "" };
        AgentError::Failed(format!("create container {id}: {cause}{error}"))
    })
}

/// The guest's id of a user of the pod's.
pub(super) fn of_the_guest(ids: Option<&Ids>, uid: u32) -> Result<u32> {
    ids.map_or(Ok(uid), |ids| ids.user(uid))
}

/// The terminal's size that a process asks for.
pub(super) fn console_size(process: Option<&oci_spec::runtime::Process>) -> Option<(u16, u16)> {
    let size = process.and_then(|process| process.console_size())?;
    Some((u16::try_from(size.width()).ok()?, u16::try_from(size.height()).ok()?))
}

/// Why a process could not be made.
#[derive(Debug, thiserror::Error)]
pub(super) enum RunError {
    #[error(transparent)]
    Spawner(#[from] SpawnerError),
    #[error(transparent)]
    Agent(#[from] AgentError),
    #[error("carry the standard streams: {0}")]
    Streams(#[from] std::io::Error),
}

/// A process to be made.
pub(super) struct Launch<'a> {
    /// For the spawner.
    pub(super) request: Request,
    /// What the request goes with, before the standard descriptors.
    pub(super) fds: &'a [BorrowedFd<'a>],
    /// The process's user.
    pub(super) uid: u32,
    /// The host's ends of its streams.
    pub(super) endpoints: Endpoints,
    /// When nobody waits for it any more.
    pub(super) deadline: Instant,
}

/// Has the spawner make a process, notes it for the reaper, and connects its streams.
pub(super) fn run(
    services: &Arc<Services>,
    container: &Arc<Container>,
    process: &Arc<crate::process::Process>,
    exec_id: &str,
    launch: Launch<'_>,
) -> std::result::Result<(), RunError> {
    let Launch { request, fds, uid, endpoints, deadline } = launch;
    let terminal =
        matches!(request, Request::Create { console: Some(_), .. } | Request::Exec { console: Some(_), .. });
    let prepared = if terminal { None } else { Some(stdio::prepare(&endpoints, uid)?) };
    let stdio = prepared.iter().flat_map(|(fds, _)| fds.iter().map(AsFd::as_fd));
    let fds: Vec<_> = fds.iter().copied().chain(stdio).collect();
    let mut spawned = services.spawner.spawn(&request, &fds, deadline, |spawned| {
        process.born(spawned.pid)?;
        if let Some(console) = &spawned.console {
            process.set_console(console.try_clone().attempt(|| "keep a terminal".to_owned())?);
        }
        let exit = services.reaper.watch(spawned.pid);
        watch_exit(services, container, process, exec_id, exit);
        Ok(())
    });
    if spawned.is_err() {
        // If there is a process, its builder ended before it was told that all is well.
        let _ = process.signal(Signal::KILL);
    }
    if exec_id.is_empty()
        && let Err(SpawnerError::Timeout { builder, .. }) = &mut spawned
        && let Some(builder) = builder.take()
    {
        container.keep_late_builder(builder);
    }
    spawned?;
    drop(fds);
    let pumps = match (prepared, process.console()) {
        (Some((fds, ends)), _) => {
            // The process has its own; a pipe ends only when the agent's copies are gone.
            drop(fds);
            Pumps::over_pipes(endpoints, ends).map_err(RunError::from)
        }
        (None, Some(master)) => Pumps::over_terminal(endpoints, master).map_err(RunError::from),
        (None, None) => Err(SpawnerError::NoAnswer.into()),
    };
    // A program that nobody hears must not go on.
    process.set_pumps(pumps.inspect_err(|_| drop(process.signal(Signal::KILL)))?);
    Ok(())
}

/// Tells of a process's end once the reaper has seen it.
fn watch_exit(
    services: &Arc<Services>,
    container: &Arc<Container>,
    process: &Arc<crate::process::Process>,
    exec_id: &str,
    exit: tokio::sync::oneshot::Receiver<crate::reaper::Exit>,
) {
    let (services, container, process) = (Arc::clone(services), Arc::clone(container), Arc::clone(process));
    let exec_id = exec_id.to_owned();
    tokio::spawn(async move {
        let Ok(exit) = exit.await else { return };
        let (oom, ended, first) = (services.oom.clone(), Arc::clone(&container), exec_id.is_empty());
        let oom_killed = blocking(move || {
            let oom_killed = oom.check(&ended.id);
            if first {
                // In a PID namespace of its own the kernel kills the rest; in a shared one nobody else would.
                let _ = ended.cgroup.kill();
            }
            Ok(oom_killed)
        })
        .await
        .unwrap_or(false);
        process.end(Ended { exit, oom_killed });
        services.tell_exit(&container.id, &exec_id, exit);
    });
}

fn write_bundle(bundle: &Path, completed: &spec::Completed) -> Result<()> {
    fs::create_dir_all(bundle).attempt(|| format!("create {}", bundle.display()))?;
    let config = serde_json::to_vec(&completed.spec)
        .map_err(|error| AgentError::Failed(format!("write {}: {error}", bundle.display())))?;
    fs::write(bundle.join("config.json"), config).attempt(|| format!("write {}", bundle.display()))?;
    if let Some(profile) = &completed.seccomp {
        let filter = seccomp::compile(profile)?;
        fs::write(bundle.join("seccomp.bpf"), filter).attempt(|| format!("write {}", bundle.display()))?;
    }
    Ok(())
}

/// Lets a created container's first process go on to its program.
pub(super) fn start(id: &str) -> Result<()> {
    let state = Path::new(paths::RUNTIME).join(id);
    let failed = |text: String| AgentError::Failed(format!("start container {id}: {text}"));
    // First, so that an exec right after finds it running.
    let mut container = State::load(state.clone()).map_err(|error| failed(chain(&error)))?;
    container.set_status(ContainerStatus::Running).save().map_err(|error| failed(chain(&error)))?;
    // What libcontainer's own start does, without changing the working directory of a process with threads.
    UnixStream::connect(state.join("notify.sock"))
        .and_then(|mut socket| socket.write_all(b"start container"))
        .map_err(|error| match error.kind() {
            std::io::ErrorKind::ConnectionRefused => {
                AgentError::WrongState(format!("container {id} ended before it was started"))
            }
            _ => failed(error.to_string()),
        })
}
