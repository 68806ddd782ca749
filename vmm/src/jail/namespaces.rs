//! Namespaces of its own, in which there is nothing. The process is born in a process namespace of its own: it sees no
//! other, and can signal none.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use super::{JailError, failed};

/// Leaves the host's namespaces. Only the network is its pod's: tools of the node find a pod's counters and addresses
/// through the namespace of the process that CRI names.
pub(super) fn leave(netns: Option<&Path>) -> Result<(), JailError> {
    let mut flags = UnshareFlags::NEWNS | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
    if let Some(path) = netns {
        let netns = File::open(path).map_err(failed("open the pod's network namespace"))?;
        move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))
            .map_err(failed("enter the pod's network namespace"))?;
    } else {
        flags |= UnshareFlags::NEWNET;
    }
    // SAFETY: the process has one thread and holds no descriptor table that it shares.
    unsafe { rustix::thread::unshare_unsafe(flags) }.map_err(failed("leave the host's namespaces"))
}
