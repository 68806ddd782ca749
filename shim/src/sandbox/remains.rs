//! What a pod has on the host, and how it is taken away: by its own shim, by `delete` after a shim that is gone, and by the
//! next pod's start where nobody called that.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tokio::time::{Instant, timeout, timeout_at};

use super::supervisor::deadline;
use crate::cgroup::{self, PodCgroup};
use crate::error::chain;
use crate::machine::Machine;
use crate::network;
use crate::node_lock;
use crate::state::{State, StateDir};
use crate::sync::blocking;

/// Most abandoned pods that one start takes away, so that none comes to pay for all.
const MOST: usize = 16;
/// Time that one abandoned pod may take, and all that one start takes away.
const SWEEP: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(20));

/// What a pod has on the host, to be removed with it.
#[derive(Debug, Default)]
pub(crate) struct Resources {
    pub(super) machine: Option<Machine>,
    pub(super) cgroup: Option<PodCgroup>,
    pub(super) netns: Option<PathBuf>,
    /// Where the pod's state is kept.
    pub(super) directory: Option<StateDir>,
}

impl Resources {
    /// Ends the machine and removes the rest. What fails is logged; nothing stops the removal of the others, and the pod's
    /// state stays to tell of it.
    pub(super) async fn remove(self) {
        let mut whole = true;
        if let Some(machine) = self.machine {
            machine.kill();
            whole = timeout(deadline::REMOVAL, machine.wait()).await.is_ok();
        }
        let network = async {
            let Some(netns) = self.netns else { return true };
            match timeout(deadline::REMOVAL, network::detach(&netns)).await {
                Ok(Ok(())) => return true,
                Ok(Err(error)) => tracing::warn!("cannot remove the pod's tap: {}", chain(&error)),
                Err(_) => tracing::warn!("the removal of the pod's tap takes too long"),
            }
            false
        };
        let cgroup = async {
            let Some(cgroup) = self.cgroup else { return true };
            match timeout(deadline::REMOVAL, cgroup.delete()).await {
                Ok(Ok(())) => return true,
                Ok(Err(error)) => tracing::warn!("cannot remove the pod's cgroup: {}", chain(&error)),
                Err(_) => tracing::warn!("the removal of the pod's cgroup takes too long"),
            }
            false
        };
        let (network, cgroup) = tokio::join!(network, cgroup);
        if let Some(directory) = self.directory
            && !(whole && network && cgroup)
        {
            directory.keep();
        }
    }
}

/// Removes everything that a dead shim's pod left on the host, as its state tells.
///
/// # Errors
/// What could not be removed, and why; the rest is.
pub async fn remove(state: &State) -> io::Result<()> {
    let mut failed = Vec::new();
    if state.socket.is_absolute()
        && let Err(error) = fs::remove_file(&state.socket)
        && error.kind() != io::ErrorKind::NotFound
    {
        failed.push(format!("cannot remove the shim's socket {}: {error}", state.socket.display()));
    }
    if let Some(machine) = state.machine
        && let Err(error) = machine.kill()
    {
        failed.push(format!("cannot kill the machine's process {}: {error}", machine.pid));
    }
    if let Some(netns) = &state.netns
        && let Err(error) = network::detach(netns).await
    {
        failed.push(format!("cannot remove the pod's tap: {}", chain(&error)));
    }
    if let Some(path) = &state.cgroups_path
        && let Err(error) = cgroup::delete(path).await
    {
        failed.push(format!("cannot remove the pod's cgroup: {}", chain(&error)));
    }
    if failed.is_empty() { Ok(()) } else { Err(io::Error::other(failed.join("; "))) }
}

/// Takes away what is left of pods whose shim and machine were killed and of which containerd knows nothing any more: it was
/// down, or gave up. `own` is the state of the pod that starts, `locks` a directory in which shims take locks.
///
/// Bounded in number and time. What cannot be removed is logged, and tried again at another pod's start.
pub async fn sweep(own: StateDir, locks: PathBuf) {
    let found = blocking(move || {
        fs::create_dir_all(&locks)?;
        // Pods that start at once need not all sweep.
        let lock = node_lock::try_acquire(&locks, "sweep")?;
        Ok::<_, io::Error>((lock, own.others()?))
    });
    let (_lock, others) = match found.await {
        Ok((Some(lock), others)) => (lock, others),
        Ok((None, _)) => return,
        Err(error) => {
            tracing::warn!("cannot look for what is left of abandoned pods: {error}");
            return;
        }
    };
    let (mut abandoned, others): (Vec<_>, Vec<_>) =
        others.into_iter().partition(|(_, state)| is_abandoned(state));
    if abandoned.is_empty() {
        return;
    }
    // Some that cannot be taken away must not stand before the others for ever.
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let first = usize::try_from(now.subsec_micros()).unwrap_or_default() % abandoned.len();
    abandoned.rotate_left(first);
    let (each, all) = SWEEP;
    let until = Instant::now() + all;
    for (directory, state) in abandoned.into_iter().take(MOST) {
        let sandbox = state.sandbox_id.clone();
        let state = without_what_lives(state, &others);
        let work = timeout_at(until.min(Instant::now() + each), remove(&state)).await;
        match work.unwrap_or_else(|late| Err(late.into())).and_then(|()| directory.remove()) {
            Ok(()) => tracing::info!(sandbox, "took away what was left of an abandoned pod"),
            Err(error) => {
                tracing::warn!(sandbox, "cannot take away what is left of an abandoned pod: {error}");
            }
        }
    }
}

/// Whether nobody will call `delete` for this pod: its processes are dead, and containerd has removed the bundle, which it
/// does last.
fn is_abandoned(state: &State) -> bool {
    let gone = |path: &Path| matches!(path.try_exists(), Ok(false));
    let lives = [state.shim, state.machine].into_iter().flatten().any(|process| process.is_there());
    state.shim.is_some() && !lives && state.bundle.is_absolute() && gone(&state.bundle)
}

/// A state without the places that another pod has by now: names of network namespaces and cgroups may be used again.
fn without_what_lives(mut state: State, others: &[(StateDir, State)]) -> State {
    let is = |same: &dyn Fn(&State) -> bool| others.iter().any(|(_, other)| same(other));
    if is(&|other| other.netns == state.netns) {
        state.netns = None;
    }
    if is(&|other| other.cgroups_path == state.cgroups_path) {
        state.cgroups_path = None;
    }
    if is(&|other| other.socket == state.socket) {
        state.socket = PathBuf::new();
    }
    state
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::*;
    use crate::state::ProcessRef;

    fn process() -> (Child, ProcessRef) {
        let child = Command::new("sleep").arg("1000").spawn().unwrap();
        let process = ProcessRef::of(child.id()).unwrap();
        (child, process)
    }

    fn dead() -> ProcessRef {
        let (mut child, process) = process();
        child.kill().unwrap();
        child.wait().unwrap();
        process
    }

    #[tokio::test]
    async fn only_pods_of_which_nobody_knows_any_more_are_taken_away() {
        let root = tempfile::tempdir().unwrap();
        let locks = root.path().join("locks");
        let pods = root.path().join("pods");
        let (mut child, alive) = process();
        let state = |name: &str| State {
            sandbox_id: name.to_owned(),
            bundle: root.path().join("gone"),
            socket: root.path().join(format!("{name}.sock")),
            shim: Some(dead()),
            machine: Some(dead()),
            ..State::default()
        };
        let states = [
            State { machine: None, ..state("without-a-machine") },
            state("abandoned"),
            State { shim: Some(alive), ..state("its-shim-lives") },
            State { machine: Some(alive), ..state("its-machine-lives") },
            State { bundle: root.path().to_owned(), ..state("known-to-containerd") },
            State { bundle: PathBuf::new(), ..state("of-an-older-shim") },
            // A cgroup that cannot be removed, because no cgroup can have such a path.
            State { cgroups_path: Some("/a/../b".to_owned()), ..state("stuck") },
        ];
        for state in &states {
            StateDir::new(&pods, &state.sandbox_id).save(state).unwrap();
            fs::write(&state.socket, "").unwrap();
        }
        let own = StateDir::new(&pods, "own");
        own.save(&state("own")).unwrap();

        fs::create_dir(&locks).unwrap();
        let elsewhere = node_lock::try_acquire(&locks, "sweep").unwrap();
        sweep(own.clone(), locks.clone()).await;
        assert!(pods.join("abandoned").exists(), "somebody else sweeps");
        drop(elsewhere);
        // A program that another test is just starting may hold a copy of the lock for a moment.
        let until = std::time::Instant::now() + Duration::from_secs(30);
        while pods.join("abandoned").exists() && std::time::Instant::now() < until {
            sweep(own.clone(), locks.clone()).await;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let mut left: Vec<_> = fs::read_dir(&pods)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        let expected = [
            "its-machine-lives",
            "its-shim-lives",
            "known-to-containerd",
            "of-an-older-shim",
            "own",
            "stuck",
        ];
        assert_eq!(left, expected);
        let socket = |name: &str| root.path().join(format!("{name}.sock")).exists();
        assert!(!socket("abandoned") && !socket("without-a-machine") && socket("known-to-containerd"));
    }

    #[test]
    fn what_another_pod_has_by_now_is_not_taken_from_it() {
        let state = State {
            netns: Some("/n/1".into()),
            cgroups_path: Some("/c/1".to_owned()),
            socket: "/s/1".into(),
            ..State::default()
        };
        let others = |other: State| vec![(StateDir::new(Path::new("/r"), "other"), other)];
        assert_eq!(without_what_lives(state.clone(), &others(State::default())), state);
        let other = State { netns: state.netns.clone(), ..State::default() };
        assert_eq!(without_what_lives(state.clone(), &others(other)), State { netns: None, ..state.clone() });
        let left = without_what_lives(state.clone(), &others(state));
        assert_eq!(left, State::default());
    }

    #[tokio::test(start_paused = true)]
    async fn the_state_of_a_pod_stays_when_something_of_it_does() {
        let root = tempfile::tempdir().unwrap();
        // The second is there and cannot be removed: a file of the first cgroup of all.
        for (cgroup, stays) in [("/ravelin-nobody-made-it", false), ("/cpu.stat", true)] {
            let directory = StateDir::new(root.path(), "abc");
            directory.save(&State::default()).unwrap();
            let cgroup = Some(PodCgroup::open(cgroup).unwrap());
            let resources = Resources { cgroup, directory: Some(directory.clone()), ..Resources::default() };
            resources.remove().await;
            directory.remove().unwrap();
            assert_eq!(directory.path().exists(), stays);
        }
    }
}
