//! From a plan to a machine whose agent answers.

use std::io;
use std::sync::Arc;

use ravelin_proto::PROTOCOL_VERSION;
use ravelin_proto::agent::SetupSandboxRequest;
use ravelin_vmm::control::{MachineConfig, Metrics};
use tokio_util::sync::CancellationToken;

use super::plan::Plan;
use super::remains::Resources;
use super::supervisor::Supervisor;
use super::{Pod, clock, port_forward, tunables, uid};
use crate::agent::{Agent, AgentError, unix_nanos};
use crate::cgroup::{CgroupError, Limits, PodCgroup, oom};
use crate::config::Config;
use crate::error::bounded;
use crate::machine::{self, BootFds, Machine, MachineError, SpawnConfig};
use crate::network::{self, Attachment, NetworkError};
use crate::node_lock::{self, NodeLock};
use crate::rootfs::{RootfsError, scratch};
use crate::state::{ProcessRef, State, StateDir};

/// A machine that could not be brought up.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// Other machines did not make room.
    #[error(
        "this node starts {places} machines at a time, and within {seconds} s it was not this pod's turn (queue_seconds in [timeouts] and starts in [vmm] of ravelin.toml)"
    )]
    Queue {
        /// How long it waited.
        seconds: u64,
        /// How many machines start at a time.
        places: usize,
    },
    /// The lock file.
    #[error("cannot wait for the pod's turn to start a machine with a lock file in {path}")]
    Turn {
        /// Its directory.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The state file.
    #[error("cannot write the pod's state to {path}")]
    State {
        /// Its directory.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The machine's user.
    #[error("cannot take a user id for the pod's machine")]
    Uid(#[source] io::Error),
    /// The pod's network.
    #[error("cannot join the machine to the pod's network")]
    Network(#[source] NetworkError),
    /// The pod's cgroup.
    #[error("cannot make the pod's cgroup")]
    Cgroup(#[source] CgroupError),
    /// The scratch disk.
    #[error("cannot make the pod's scratch disk")]
    Scratch(#[source] RootfsError),
    /// Nobody wants the pod any more.
    #[error("the start of the pod's machine was called off")]
    Cancelled,
    /// The machine itself.
    #[error("cannot start the pod's machine")]
    Machine(#[source] MachineError),
    /// The machine runs and its agent does not answer.
    #[error(
        "the agent in the pod's machine did not come up within {seconds} s (guest.console = true in ravelin.toml shows the guest's console in containerd's log)"
    )]
    Agent {
        /// How long it had.
        seconds: u64,
        /// The last attempt's error.
        #[source]
        source: MachineError,
    },
    /// The agent refused to set the pod up.
    #[error(transparent)]
    Setup(AgentError),
    /// The agent is of another version.
    #[error(
        "the agent in the pod's machine speaks protocol version {theirs}, the shim {PROTOCOL_VERSION}: guest.initramfs and the shim must be of the same release"
    )]
    Version {
        /// The agent's.
        theirs: u32,
    },
}

/// Waits until it is this pod's turn to start a machine. The turn lasts until what this gives is dropped.
///
/// A boot keeps a CPU busy. Many at once would all be slow, until the kubelet gives up on them, throws them away and tries
/// them again, which makes the node slower still. So a few start at a time, and the others wait without taking anything.
pub(super) async fn turn(config: &Config) -> Result<NodeLock, BootError> {
    let (places, patience) = (config.starts(), config.queue_deadline());
    let turn = node_lock::take_turn(&config.storage.directory, "start", places, patience).await;
    turn.map_err(|source| match source.kind() {
        io::ErrorKind::TimedOut => BootError::Queue { seconds: patience.as_secs(), places },
        _ => BootError::Turn { path: config.storage.directory.clone(), source },
    })
}

/// Starts the machine's process and prepares everything it is built from at the same time; returns when the machine
/// runs. What was made is put into `resources` and `state` as it comes to be, for the caller to remove if this fails.
pub(super) async fn machine(
    plan: &Plan,
    config: &Config,
    state: &mut State,
    directory: &StateDir,
    resources: &mut Resources,
    cancelled: &CancellationToken,
) -> Result<(Machine, Attachment), BootError> {
    let save = |state: &State| {
        let path = directory.path().to_owned();
        directory.save(state).map_err(|source| BootError::State { path, source })
    };
    // What can be missing is looked for before anything is made.
    let kvm = machine::open_kvm().map_err(BootError::Machine)?;
    let kernel = machine::open_kernel(&config.guest.kernel).map_err(BootError::Machine)?;
    let initramfs = machine::open_initramfs(&config.guest.initramfs).map_err(BootError::Machine)?;

    let templates = config.templates_dir();
    let scratch_bytes = u64::from(config.storage.scratch_gib) << 30;
    state.netns = Some(plan.netns.clone());
    state.cgroups_path = Some(plan.cgroups_path.clone());
    save(state)?;
    resources.netns = Some(plan.netns.clone());

    let uid = uid::take(config, directory, state).await.map_err(BootError::Uid)?;
    // The pod's share of a CPU is not there to slow its machine's boot: the quota follows when the guest is up.
    let limits = Limits { cpu_quota_us: None, ..plan.limits(config) };
    let cgroup = PodCgroup::create(&plan.cgroups_path, &limits).map_err(BootError::Cgroup)?;
    resources.cgroup = Some(cgroup.clone());
    let birthplace = cgroup.birthplace().map_err(BootError::Cgroup)?;
    let spawn = SpawnConfig {
        vmm: config.vmm.path.clone(),
        uid,
        gid: uid,
        vcpus: plan.size.vcpus,
        scratch_bytes,
        oom_score: oom::score(&plan.cgroups_path),
        netns: plan.netns.clone(),
        deadline: config.call_deadline(),
        sandbox_id: plan.sandbox_id.clone(),
    };
    let begins_there = birthplace.is_some();
    let machine = Machine::spawn(&spawn, birthplace).await.map_err(BootError::Machine)?;
    resources.machine = Some(machine.clone());
    state.machine = Some(ProcessRef { pid: machine.pid(), start_time: machine.start_time() });
    save(state)?;
    if !begins_there {
        cgroup.add(machine.pid()).map_err(BootError::Cgroup)?;
    }

    // To their ends, both: half of one could not be taken back.
    let (attachment, scratch) = tokio::join!(
        network::attach(&plan.netns, plan.size.vcpus),
        scratch::create(&templates, &config.storage.directory, scratch_bytes, config.boot_deadline()),
    );
    let mut attachment = attachment.map_err(BootError::Network)?;
    let scratch = scratch.map_err(BootError::Scratch)?;

    let taps = attachment.take_taps();
    let shape = MachineConfig {
        vcpus: plan.size.vcpus,
        memory_mib: plan.size.memory_mib.saturating_add(plan.headroom_mib),
        balloon_mib: plan.headroom_mib,
        mac: attachment.guest.mac,
        mtu: attachment.guest.mtu,
        tap_queues: u8::try_from(taps.len()).unwrap_or(u8::MAX),
        console: config.guest.console,
        extra_cmdline: config.guest.cmdline.clone(),
    };
    let console = if config.guest.console {
        let pipe = machine::log_pipe(&plan.sandbox_id, "console")
            .map_err(|source| BootError::Machine(MachineError::Plumbing { what: "console pipe", source }))?;
        Some(pipe)
    } else {
        None
    };
    let fds = BootFds { kvm, kernel, initramfs, scratch: scratch.into(), taps, console };
    tokio::select! {
        biased;
        () = cancelled.cancelled() => return Err(BootError::Cancelled),
        booted = machine.boot(shape, fds, config.boot_deadline()) => booted.map_err(BootError::Machine)?,
    }
    Ok((machine, attachment))
}

/// Waits for the agent and sets the pod up in it.
pub(super) async fn agent(
    plan: &Plan,
    config: &Config,
    machine: Machine,
    attachment: Attachment,
    turn: NodeLock,
    supervisor: Supervisor,
) -> Result<Arc<Pod>, BootError> {
    let patience = config.boot_deadline();
    let agent = Agent::connect(&machine, patience, config.call_deadline())
        .await
        .map_err(|source| BootError::Agent { seconds: patience.as_secs(), source })?;
    // What comes now takes little of a CPU.
    drop(turn);
    let network = attachment.guest;
    let request = SetupSandboxRequest {
        protocol_version: PROTOCOL_VERSION,
        sandbox_id: plan.sandbox_id.clone(),
        hostname: plan.hostname.clone(),
        interfaces: network.interfaces,
        routes: network.routes,
        neighbours: network.neighbours,
        sysctls: plan.sysctls.clone(),
        tunables: tunables::of_the_node(),
        unix_nanos: unix_nanos(),
        shm_bytes: 0,
        shared_pid_namespace: true,
        user_namespace: plan.user_namespace,
    };
    let mut client = agent.client();
    let (setup, metrics) = tokio::join!(
        agent.call("set the pod up", client.setup_sandbox(agent.request(request))),
        machine.metrics()
    );
    let setup = setup.map_err(BootError::Setup)?;
    if setup.protocol_version != PROTOCOL_VERSION {
        return Err(BootError::Version { theirs: setup.protocol_version });
    }
    PodCgroup::open(&plan.cgroups_path)
        .and_then(|cgroup| cgroup.set(&plan.limits(config)))
        .map_err(BootError::Cgroup)?;
    tracing::info!(
        sandbox = plan.sandbox_id,
        vcpus = plan.size.vcpus,
        memory_mib = plan.size.memory_mib,
        kernel = bounded(&setup.kernel_release, 64),
        "the pod's machine is ready"
    );
    if let Ok(metrics) = metrics {
        log_counters(&plan.sandbox_id, &metrics);
    }
    let pod = Arc::new(Pod::new(plan, config, agent, supervisor));
    tokio::spawn(clock::follow(pod.agent.clone(), pod.supervisor.clone()));
    if let Some(loopback) = attachment.loopback {
        tokio::spawn(port_forward::serve(Arc::clone(&pod), loopback));
    }
    Ok(pod)
}

/// Writes down what the boot took: times since the machine's process started, VM exits by kind up to the agent's mark.
fn log_counters(sandbox: &str, metrics: &Metrics) {
    let exits: Vec<String> =
        metrics.exits_at_ready.iter().take(32).map(|(kind, count)| format!("{kind}:{count}")).collect();
    tracing::info!(
        sandbox,
        kernel_entry_us = metrics.kernel_entry_us,
        agent_ready_us = metrics.agent_ready_us,
        guest_resident_bytes = metrics.guest_resident_bytes,
        exits = bounded(&exits.join(","), 1024),
        "the machine's counters"
    );
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::{Api, Sandbox};
    use super::*;
    use crate::error::TaskError;

    #[tokio::test]
    async fn who_waits_too_long_for_a_turn_hears_of_the_queue() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.storage.directory = dir.path().to_owned();
        config.vmm.starts = 1;
        let first = turn(&config).await.unwrap();
        config.timeouts.queue_seconds = 1;
        let second = turn(&config).await.unwrap_err();
        assert!(matches!(second, BootError::Queue { seconds: 1, places: 1 }), "{second}");
        config.timeouts.queue_seconds = 60;
        drop(first);
        turn(&config).await.unwrap();
    }

    /// A burst of pods is called off while it waits in the queue, which may take minutes.
    #[tokio::test]
    async fn a_sandbox_waits_for_its_turn_and_is_called_off_meanwhile() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.storage.directory = dir.path().to_owned();
        config.vmm.starts = 1;
        config.timeouts.queue_seconds = 600;
        let _other = turn(&config).await.unwrap();
        let (plan, config) = (super::super::plan::tests::plan(&config), Arc::new(config));
        let (directory, cancelled) = (StateDir::new(dir.path(), "s"), CancellationToken::new());
        let state = State::default();
        let sandbox = Sandbox::create(plan, String::new(), Api::Task, &config, state, &directory, &cancelled);
        let mut sandbox = std::pin::pin!(sandbox);
        let waits = tokio::time::timeout(Duration::from_millis(200), &mut sandbox).await;
        assert!(waits.is_err(), "another machine starts");
        cancelled.cancel();
        let called_off = tokio::time::timeout(Duration::from_secs(30), sandbox).await.expect("it ends");
        assert_eq!(called_off.unwrap_err().to_string(), TaskError::failed(BootError::Cancelled).to_string());
    }
}
