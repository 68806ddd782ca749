//! The namespaces of a pod that has a user namespace of its own (`hostUsers: false` in Kubernetes). Other pods have the guest's.
//!
//! Network, IPC and UTS namespace belong to it, so that the pod's root may do in them what root may; so does the pod's PID
//! namespace. The spawner makes them all ([`Request::Pause`](crate::spawner::Request::Pause)), for only a process with one thread
//! can enter a user namespace, and leaves them under [`paths::NAMESPACES`].
//!
//! Files keep on their disks the owners that the pod's containers see: what a container has of them is mounted with the
//! namespace's mapping (idmapped mounts, `mount_setattr(2)`).

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxIdMapping, User};
use ravelin_proto::agent as api;
use rustix::fs::{Mode, OFlags, open};
use rustix::mount::mount_bind;
use rustix::process::Pid;
use rustix::thread::{
    CapabilitySets, ThreadNameSpaceType, capabilities, move_into_thread_name_spaces, set_capabilities,
};
use serde::{Deserialize, Serialize};

use crate::error::{AgentError, Attempt, Result};
use crate::paths;

/// Ids 0 to `size` - 1 of a user namespace are `first` to `first` + `size` - 1 of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    first: u32,
    size: u32,
}

impl Range {
    fn new(range: Option<api::IdRange>) -> Result<Self> {
        let range = range.unwrap_or_default();
        let last = range.size.checked_sub(1).and_then(|size| range.first.checked_add(size));
        // The last of all is no id.
        if last.is_none_or(|last| last == u32::MAX) || range.first == 0 {
            return Err(AgentError::Invalid(format!(
                "a user namespace of {} ids from {} on cannot be: there must be some, of others than the guest's root",
                range.size, range.first
            )));
        }
        Ok(Self { first: range.first, size: range.size })
    }

    /// As the kernel reads it from `uid_map` and `gid_map` (`user_namespaces(7)`).
    pub(crate) fn line(self) -> String {
        format!("0 {} {}\n", self.first, self.size)
    }

    /// The guest's id of one of the namespace's.
    fn of_the_guest(self, id: u32) -> Option<u32> {
        (id < self.size).then(|| self.first + id)
    }

    fn is(self, mapping: &[LinuxIdMapping]) -> bool {
        matches!(mapping, [one] if (one.container_id(), one.host_id(), one.size()) == (0, self.first, self.size))
    }
}

/// The users and groups of a user namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ids {
    /// Users.
    pub users: Range,
    /// Groups.
    pub groups: Range,
}

impl Ids {
    /// Those that the host asks for.
    ///
    /// # Errors
    ///
    /// [`AgentError::Invalid`] for a range that cannot be.
    pub fn new(asked: api::UserNamespace) -> Result<Self> {
        Ok(Self { users: Range::new(asked.users)?, groups: Range::new(asked.groups)? })
    }

    /// The guest's id of a user of the pod's.
    ///
    /// # Errors
    ///
    /// [`AgentError::Invalid`] for one that the namespace does not have.
    pub fn user(&self, id: u32) -> Result<u32> {
        self.users.of_the_guest(id).ok_or_else(|| {
            AgentError::Invalid(format!(
                "the user {id} does not exist: the pod's user namespace has {} users",
                self.users.size
            ))
        })
    }

    /// The guest's ids of the pod's root and its group.
    #[must_use]
    pub const fn root(&self) -> (u32, u32) {
        (self.users.first, self.groups.first)
    }

    /// Refuses a process of users or groups that the namespace does not have.
    ///
    /// # Errors
    ///
    /// [`AgentError::Invalid`], which names the first of them.
    pub fn check(&self, user: &User) -> Result<()> {
        self.user(user.uid())?;
        let groups = [user.gid()].into_iter().chain(user.additional_gids().iter().flatten().copied());
        match groups.into_iter().find(|group| self.groups.of_the_guest(*group).is_none()) {
            None => Ok(()),
            Some(group) => Err(AgentError::Invalid(format!(
                "the group {group} does not exist: the pod's user namespace has {} groups",
                self.groups.size
            ))),
        }
    }

    /// Whether these are the mappings of an OCI spec.
    #[must_use]
    pub fn are(&self, users: &[LinuxIdMapping], groups: &[LinuxIdMapping]) -> bool {
        self.users.is(users) && self.groups.is(groups)
    }

    /// Lets the calling thread make files as the pod's root, with no right less. Until what this gives is dropped.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn make_files(&self) -> io::Result<Maker> {
        let before = capabilities(None)?;
        set_file_ids(self.users.first, self.groups.first);
        let maker = Maker(before);
        // Those that concern files went with root's id.
        set_capabilities(None, before)?;
        Ok(maker)
    }
}

/// A thread that makes files as another user.
#[derive(Debug)]
pub struct Maker(CapabilitySets);

impl Drop for Maker {
    fn drop(&mut self) {
        set_file_ids(0, 0);
        let _ = set_capabilities(None, self.0);
    }
}

/// Sets user and group of the files that the calling thread makes.
fn set_file_ids(user: u32, group: u32) {
    // SAFETY: both calls take plain numbers and concern this thread alone; the C library has no part in them.
    unsafe {
        libc::syscall(libc::SYS_setfsgid, group);
        libc::syscall(libc::SYS_setfsuid, user);
    }
}

/// The pod's namespaces.
#[derive(Debug)]
pub struct Namespaces {
    /// The users and groups of its user namespace.
    pub ids: Ids,
    user: OwnedFd,
    others: [OwnedFd; 3],
}

/// The file of the pod's PID namespace under [`paths::NAMESPACES`].
pub const PIDS: &str = "pid";
/// Which file under [`paths::NAMESPACES`] is which namespace, as `/proc/PID/ns` calls them.
pub(crate) const USER: &str = "user";
/// Those that belong to it and have no process.
pub(crate) const OTHERS: [(&str, ThreadNameSpaceType); 3] = [
    ("net", ThreadNameSpaceType::NETWORK),
    ("ipc", ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION),
    ("uts", ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME),
];

impl Namespaces {
    /// Opens those that the spawner has made.
    ///
    /// # Errors
    ///
    /// When they are not there.
    pub fn open(ids: Ids) -> Result<Self> {
        let open = |name: &str| {
            let path = Self::path(name);
            open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                .attempt(|| format!("open {}", path.display()))
        };
        let [network, ipc, uts] = OTHERS.map(|(name, _)| open(name));
        Ok(Self { ids, user: open(USER)?, others: [network?, ipc?, uts?] })
    }

    /// Keeps the PID namespace of its init. Who is in the user namespace may not look at that process, which is none of theirs.
    ///
    /// # Errors
    ///
    /// When it cannot be mounted.
    pub fn keep_pids_of(init: Pid) -> Result<()> {
        let place = Self::path(PIDS);
        let kept = File::create(&place)
            .and_then(|_| Ok(mount_bind(format!("/proc/{}/ns/pid", init.as_raw_nonzero()), &place)?));
        kept.attempt(|| format!("keep the pod's PID namespace at {}", place.display()))
    }

    /// The file of the namespace that `/proc/PID/ns` calls `name`.
    #[must_use]
    pub fn path(name: &str) -> PathBuf {
        Path::new(paths::NAMESPACES).join(name)
    }

    /// The user namespace.
    #[must_use]
    pub fn user(&self) -> BorrowedFd<'_> {
        self.user.as_fd()
    }

    /// The network namespace.
    #[must_use]
    pub fn network(&self) -> BorrowedFd<'_> {
        self.others[0].as_fd()
    }

    /// Moves the calling thread into the network, IPC and UTS namespace.
    fn enter(&self) -> io::Result<()> {
        for (fd, (_, kind)) in self.others.iter().zip(OTHERS) {
            move_into_thread_name_spaces(fd.as_fd(), kind)?;
        }
        Ok(())
    }
}

/// Runs work in the pod's network, IPC and UTS namespace, on a thread of its own where those are not the guest's. Blocks.
///
/// # Errors
///
/// Those of `work`, or the kernel's refusal.
pub fn within<T: Send>(
    namespaces: Option<&Namespaces>,
    work: impl FnOnce() -> Result<T> + Send,
) -> Result<T> {
    let Some(namespaces) = namespaces else { return work() };
    let runtime = tokio::runtime::Handle::try_current();
    std::thread::scope(|scope| {
        let work = || {
            let _runtime = runtime.as_ref().map(|runtime| runtime.enter());
            namespaces.enter().attempt(|| "enter the pod's namespaces".to_owned())?;
            work()
        };
        let thread = std::thread::Builder::new().name("pod".to_owned()).spawn_scoped(scope, work);
        let thread = thread.attempt(|| "make a thread for the pod's namespaces".to_owned())?;
        thread
            .join()
            .unwrap_or_else(|_| Err(AgentError::Failed("a task in the pod's namespaces failed".to_owned())))
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn ids(first: u32, size: u32) -> Result<Ids> {
        let range = Some(api::IdRange { first, size });
        Ids::new(api::UserNamespace { users: range, groups: range })
    }

    #[test]
    fn ids_are_those_of_the_range_and_no_others() {
        let ids = ids(65_536, 65_536).unwrap();
        assert_eq!((ids.user(0).unwrap(), ids.user(65_535).unwrap()), (65_536, 131_071));
        let refused = ids.user(65_536).unwrap_err().to_string();
        assert!(refused.contains("65536 does not exist"), "{refused}");
        assert_eq!(ids.users.line(), "0 65536 65536\n");
        let mapping = |container, host, size| {
            let json = serde_json::json!({ "containerID": container, "hostID": host, "size": size });
            serde_json::from_value::<LinuxIdMapping>(json).unwrap()
        };
        let own = [mapping(0, 65_536, 65_536)];
        assert!(ids.are(&own, &own));
        for other in [vec![], vec![mapping(1, 65_536, 65_536)], vec![own[0], own[0]]] {
            assert!(!ids.are(&own, &other) && !ids.are(&other, &own), "{other:?}");
        }
    }

    #[test]
    fn a_range_that_cannot_be_is_refused() {
        for (first, size) in [(65_536, 0), (0, 65_536), (u32::MAX, 1), (u32::MAX - 1, 2), (2, u32::MAX)] {
            ids(first, size).unwrap_err();
        }
        ids(u32::MAX - 2, 2).unwrap();
        Ids::new(api::UserNamespace::default()).unwrap_err();
    }

    #[test]
    fn files_are_made_as_the_pods_root_and_everything_may_be_done_with_them() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("left out: it needs root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let closed = dir.path().join("closed");
        std::fs::create_dir(&closed).unwrap();
        std::fs::set_permissions(&closed, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        let owner = |name: &str| {
            std::fs::write(closed.join(name), "").unwrap();
            let made = closed.join(name).metadata().unwrap();
            (made.uid(), made.gid())
        };
        let maker = ids(70_000, 10).unwrap().make_files().unwrap();
        assert_eq!(owner("theirs"), (70_000, 70_000));
        drop(maker);
        assert_eq!(owner("ours"), (0, 0));
    }

    #[test]
    fn work_without_a_user_namespace_is_done_here() {
        let thread = std::thread::current().id();
        assert!(within(None, || Ok(std::thread::current().id() == thread)).unwrap());
    }
}
