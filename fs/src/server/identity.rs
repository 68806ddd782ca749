//! In whose name a thread acts: files are made by the user who asks, as the guest says it.

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::process::umask;
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};

use crate::jail::CAPABILITIES;

/// What a thread that acts for a user keeps: the way back; and access, because the guest's kernel has decided on it, by
/// supplementary groups that a request does not name.
const ACTING: CapabilitySet =
    CapabilitySet::SETUID.union(CapabilitySet::SETGID).union(CapabilitySet::DAC_OVERRIDE);

/// Whether and how the process can act for others.
#[derive(Debug, Clone, Copy)]
pub(super) struct Identity {
    /// Without privileges, as in tests, everything is done in the process's own name.
    privileged: bool,
}

impl Identity {
    /// What this process can do.
    pub fn of_process() -> Self {
        let held = rustix::thread::capabilities(None).map(|sets| sets.effective);
        Self { privileged: held.is_ok_and(|held| held.contains(ACTING)) }
    }

    /// Until the end of what is returned, files that this thread makes belong to a user and a group and have no more of their
    /// mode than `mask` leaves, unless their directory has a default ACL.
    pub fn act_for(self, uid: u32, gid: u32, mask: u32) -> Result<Acting, Errno> {
        // The last number means "no change" to the kernel.
        if uid == u32::MAX || gid == u32::MAX {
            return Err(Errno::INVAL);
        }
        umask(Mode::from_raw_mode(mask & 0o777));
        let switched = self.privileged && (uid, gid) != (0, 0);
        let acting = Acting { switched, is_root: uid == 0 };
        if acting.switched {
            // SAFETY: both calls take numbers and change this thread only.
            unsafe {
                libc::setfsgid(gid);
                libc::setfsuid(uid);
            }
            // Neither says whether it did, but for what it returns to a second call.
            // SAFETY: as above; the last number changes nothing.
            let now = unsafe { (libc::setfsuid(u32::MAX), libc::setfsgid(u32::MAX)) };
            if (now.0.cast_unsigned(), now.1.cast_unsigned()) != (uid, gid) {
                return Err(Errno::PERM);
            }
            if uid != 0 {
                hold(ACTING)?;
            }
        }
        Ok(acting)
    }

    /// Until the end of what is returned, this thread has no right to keep the set-id bits of a file that it changes. It may be
    /// acting for somebody meanwhile, and has no more rights by this than before.
    pub fn without_set_id(self, wanted: bool) -> Result<WithoutSetId, Errno> {
        let mut before = None;
        if wanted && self.privileged {
            let held = rustix::thread::capabilities(None)?.effective;
            if held.contains(CapabilitySet::FSETID) {
                hold(held.difference(CapabilitySet::FSETID))?;
                before = Some(held);
            }
        }
        Ok(WithoutSetId { before })
    }
}

/// Restricts the thread to these of its capabilities.
fn hold(effective: CapabilitySet) -> Result<(), Errno> {
    let sets = CapabilitySets { effective, permitted: CAPABILITIES, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets)
}

/// A thread that acts for a user.
#[derive(Debug)]
pub(super) struct Acting {
    switched: bool,
    is_root: bool,
}

impl Acting {
    /// From now on the node decides on access too.
    pub fn without_access(&self) -> Result<(), Errno> {
        if self.switched && !self.is_root {
            hold(ACTING.difference(CapabilitySet::DAC_OVERRIDE))?;
        }
        Ok(())
    }
}

impl Drop for Acting {
    fn drop(&mut self) {
        umask(Mode::empty());
        if self.switched {
            // SAFETY: both calls take numbers and change this thread only.
            unsafe {
                libc::setfsuid(0);
                libc::setfsgid(0);
            }
            restore(CAPABILITIES);
        }
    }
}

/// A thread that cannot keep set-id bits.
#[derive(Debug)]
pub(super) struct WithoutSetId {
    /// What it held, if that was more.
    before: Option<CapabilitySet>,
}

impl Drop for WithoutSetId {
    fn drop(&mut self) {
        if let Some(before) = self.before {
            restore(before);
        }
    }
}

/// Has the thread hold again what it held. A thread that cannot must not go on with another's rights.
fn restore(before: CapabilitySet) {
    if hold(before).is_err() {
        std::process::exit(1);
    }
}
