//! User, group and capabilities.

use std::io;

use rustix::process::{DumpableBehavior, Gid, Uid};
use rustix::thread::{CapabilitySet, CapabilitySets};

use super::{JailError, failed};

/// Who the process becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// User, not 0.
    pub uid: u32,
    /// Group, not 0.
    pub gid: u32,
}

/// Gives up all privileges, and the ways to get them back.
pub(super) fn drop(identity: Identity) -> Result<(), JailError> {
    let mut last = 0;
    while drop_bounding(last).map_err(failed("give up the bounding capabilities"))? {
        last += 1;
    }
    rustix::thread::clear_ambient_capability_set().map_err(failed("give up ambient capabilities"))?;
    let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    // The raw calls change this thread only, and it is the only one.
    rustix::thread::set_thread_groups(&[]).map_err(failed("give up supplementary groups"))?;
    rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(failed("change the group"))?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(failed("change the user"))?;
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, none).map_err(failed("give up capabilities"))?;
    rustix::thread::set_no_new_privs(true).map_err(failed("refuse new privileges"))?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(failed("refuse to be traced"))
}

/// Drops one capability from the bounding set; false if there is no such capability.
fn drop_bounding(capability: libc::c_ulong) -> io::Result<bool> {
    // SAFETY: PR_CAPBSET_DROP takes its argument by value.
    if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) } == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() == Some(libc::EINVAL) { Ok(false) } else { Err(error) }
}
