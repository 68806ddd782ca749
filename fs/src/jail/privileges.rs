//! Capabilities: what it takes to keep owners and modes as the guest sets them, and no more.

use std::io;

use rustix::process::{DumpableBehavior, Gid, Uid};
use rustix::thread::{CapabilitySet, CapabilitySets};

use super::{JailError, failed};

/// What the process keeps.
pub const CAPABILITIES: CapabilitySet = CapabilitySet::CHOWN // the guest's root gives files away
    .union(CapabilitySet::DAC_OVERRIDE) // files of all owners; the guest's kernel decides who may use them
    .union(CapabilitySet::FOWNER) // modes, times and attributes of other owners' files
    .union(CapabilitySet::FSETID) // set-id bits stay where the guest's kernel says that they do
    .union(CapabilitySet::SETUID) // new files belong to who makes them
    .union(CapabilitySet::SETGID); // and to their group
// Left out: DAC_READ_SEARCH, with which files are opened that no name leads to; MKNOD, because a device of the guest's must not
// become one of the node's; SYS_ADMIN and SETFCAP, so that attributes that mean something to the node cannot be set.

/// Gives up all other privileges, and the ways to get them back.
pub(super) fn drop() -> Result<(), JailError> {
    let mut capability = 0;
    while drop_bounding(capability).map_err(failed("give up the bounding capabilities"))? {
        capability += 1;
    }
    rustix::thread::clear_ambient_capability_set().map_err(failed("give up ambient capabilities"))?;
    // The raw calls change this thread only, and it is the only one.
    rustix::thread::set_thread_groups(&[]).map_err(failed("give up supplementary groups"))?;
    rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)
        .map_err(failed("change the group"))?;
    rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT).map_err(failed("change the user"))?;
    let sets = CapabilitySets {
        effective: CAPABILITIES,
        permitted: CAPABILITIES,
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, sets).map_err(failed("give up capabilities"))?;
    rustix::thread::set_no_new_privs(true).map_err(failed("refuse new privileges"))?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(failed("refuse to be traced"))
}

/// Drops one capability from the bounding set; false if there is no such capability. A program that is executed has no more than
/// that set, and none is.
fn drop_bounding(capability: libc::c_ulong) -> io::Result<bool> {
    // SAFETY: PR_CAPBSET_DROP takes its argument by value.
    if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) } == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() == Some(libc::EINVAL) { Ok(false) } else { Err(error) }
}
