//! Where things lie in the guest.

use std::path::PathBuf;

/// Everything the agent keeps.
pub const RUN: &str = "/run/ravelin";
/// Mounted image layers, one directory per extent.
pub const LAYERS: &str = "/run/ravelin/layers";
/// Mounted extents of the volumes disk.
pub const BLOCK_VOLUMES: &str = "/run/ravelin/block";
/// The scratch disk; a plain directory of the root tmpfs when the machine has none.
pub const SCRATCH: &str = "/run/ravelin/scratch";
/// Volumes whose content the host pushes.
pub const VOLUMES: &str = "/run/ravelin/volumes";
/// File volumes, each a folder with its number for a name; mounted when the first is used.
pub const FILE_VOLUMES: &str = "/run/ravelin/files";
/// emptyDir volumes in which containers see each other's mounts, each a shared mount.
pub const SHARED_DIRS: &str = "/run/ravelin/shared";
/// emptyDir volumes in memory.
pub const MEMORY_DIRS: &str = "/run/ravelin/memory";
/// One directory per container: bundle, root file system, bind sources.
pub const CONTAINERS: &str = "/run/ravelin/containers";
/// libcontainer's state. Short, because a socket's path of at most 107 bytes lies under it.
pub const RUNTIME: &str = "/run/ravelin/rt";
/// The pod's `/dev/shm`.
pub const SHM: &str = "/run/ravelin/shm";
/// The namespaces of a pod with a user namespace of its own, by the names of `/proc/PID/ns`.
pub const NAMESPACES: &str = "/run/ravelin/ns";
/// The cgroup v2 hierarchy.
pub const CGROUP: &str = "/sys/fs/cgroup";
/// The cgroup of the agent and its spawner.
pub const AGENT_CGROUP: &str = "/sys/fs/cgroup/agent";
/// The cgroup above all containers.
pub const POD_CGROUP: &str = "/sys/fs/cgroup/pod";
/// The layers disk.
pub const LAYERS_DISK: &str = "/dev/vda";
/// The scratch disk.
pub const SCRATCH_DISK: &str = "/dev/vdb";
/// The volumes disk.
pub const VOLUMES_DISK: &str = "/dev/vdc";

/// A container's own directory.
#[must_use]
pub fn container(id: &str) -> PathBuf {
    PathBuf::from(CONTAINERS).join(id)
}

/// A container's writable layer on the scratch disk.
#[must_use]
pub fn container_scratch(id: &str) -> PathBuf {
    PathBuf::from(SCRATCH).join("containers").join(id)
}

/// A container's cgroup.
#[must_use]
pub fn container_cgroup(id: &str) -> PathBuf {
    PathBuf::from(POD_CGROUP).join(id)
}

/// Where an extent of the layers disk is mounted.
#[must_use]
pub fn layer(id: u32) -> PathBuf {
    PathBuf::from(LAYERS).join(id.to_string())
}
