//! `delete`: cleans up after a shim that is gone.
//!
//! containerd runs it once for each container of the shim, and also after a shim that ended in good order.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use containerd_shim_protos::api::DeleteResponse;
use protobuf::{Message, MessageField};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::{Args, CliError, check, print};
use crate::events::timestamp;
use crate::sandbox::remains;
use crate::spec::{self, Kind};
use crate::state::{self, ProcessRef, State, StateDir};

/// Exit status of what SIGKILL ended.
const KILLED: u32 = 128 + 9;
/// Time a shim that is on its way out has to get there by itself.
const GRACE: Duration = Duration::from_secs(1);
/// Time that all may take together; containerd gives the command five seconds.
const DEADLINE: Duration = Duration::from_millis(4500);

pub(super) fn run(args: &Args) -> Result<(), CliError> {
    let until = Instant::now() + DEADLINE;
    check(args)?;
    let bundle = if args.bundle.is_empty() { PathBuf::from(".") } else { PathBuf::from(&args.bundle) };
    let mut pid = 0;
    // A container leaves nothing of its own on the host. Without a spec to tell, the state does.
    let is_container =
        spec::load(&bundle).is_ok_and(|spec| matches!(spec::kind(&spec), Ok(Kind::Container { .. })));
    if !is_container {
        pid = remove(&StateDir::new(Path::new(state::ROOT), &args.id), until)?;
    }
    let mut response = DeleteResponse::new();
    response.pid = pid;
    response.exit_status = KILLED;
    response.exited_at = MessageField::some(timestamp(SystemTime::now()));
    print(&response.write_to_bytes().map_err(CliError::Encode)?)
}

/// Removes what is left of a pod, and its state last. Gives the machine's pid, 0 if nothing tells it.
fn remove(directory: &StateDir, until: Instant) -> Result<u32, CliError> {
    let Some(state) = directory.load().map_err(CliError::system("read the pod's state"))? else {
        // A shim that ended before it had written its state made nothing but the place for it.
        directory.remove().map_err(CliError::system("remove the pod's state"))?;
        return Ok(0);
    };
    // What is not done is kept in mind: the state stays, and its user id is nobody else's.
    clean(&state, until)?;
    directory.remove().map_err(CliError::system("remove the pod's state"))?;
    Ok(state.machine.map_or(0, |machine| machine.pid))
}

fn clean(state: &State, until: Instant) -> Result<(), CliError> {
    if let Some(shim) = state.shim {
        end(shim);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(CliError::system("start the runtime"))?;
    let cleaned = runtime.block_on(async {
        let work = remains::remove(state);
        tokio::time::timeout_at(until.into(), work).await.unwrap_or_else(|late| Err(late.into()))
    });
    runtime.shutdown_background();
    cleaned.map_err(CliError::system("remove what is left of the pod"))
}

/// Waits for a shim's end, and brings it about if it does not come.
fn end(shim: ProcessRef) {
    let Some(pid) = i32::try_from(shim.pid).ok().and_then(Pid::from_raw) else { return };
    let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else { return };
    let gone = || {
        let timeout = Timespec { tv_sec: GRACE.as_secs().try_into().unwrap_or(1), tv_nsec: 0 };
        matches!(poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&timeout)), Ok(1..))
    };
    if !gone() && matches!(shim.kill(), Ok(true)) {
        gone();
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_pods_state_goes_unless_something_of_the_pod_stays() {
        let root = tempfile::tempdir().unwrap();
        let directory = StateDir::new(root.path(), "abc");
        let until = Instant::now() + DEADLINE;
        assert_eq!(remove(&directory, until).unwrap(), 0);
        // Of a shim that came no further.
        fs::create_dir(directory.path()).unwrap();
        assert_eq!(remove(&directory, until).unwrap(), 0);
        assert!(!directory.path().exists());
        // A cgroup that cannot be removed, because no cgroup can have such a path.
        let machine = Some(ProcessRef { pid: 1, start_time: 0 });
        let state = State { machine, cgroups_path: Some("/a/../b".to_owned()), ..State::default() };
        directory.save(&state).unwrap();
        remove(&directory, until).unwrap_err();
        assert_eq!(directory.load().unwrap(), Some(state));
        directory.save(&State { machine, ..State::default() }).unwrap();
        assert_eq!(remove(&directory, until).unwrap(), 1);
        assert!(!directory.path().exists());
    }
}
