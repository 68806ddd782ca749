//! AppArmor's profiles in the guest's kernel: those that the host has pushed, and no others.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::Mutex;

use bytes::Bytes;
use rustix::fs::{Mode, OFlags, openat};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

use crate::error::{AgentError, Attempt, Result};
use crate::sync::lock;

/// Longest name of a profile, in bytes: with it the kernel takes no more than a page.
pub const MAX_NAME: usize = 2048;

/// The name of a profile that a spec asks for; `None` when it asks for none.
#[must_use]
pub fn asked(name: Option<&str>) -> Option<&str> {
    name.filter(|name| !name.is_empty() && *name != "unconfined")
}

/// The profiles of the guest's kernel.
#[derive(Debug, Default)]
pub struct Profiles(Mutex<Loaded>);

#[derive(Debug, Default)]
struct Loaded {
    /// What was loaded last. What was loaded before may have been replaced by it in part.
    policies: Vec<Bytes>,
    /// All that the kernel has since then.
    names: HashSet<String>,
}

impl Profiles {
    /// Has the kernel know the profile `name` as `policies`, loaded in their order, say it. A pod's containers mostly have one
    /// profile in common, which is loaded once.
    ///
    /// # Errors
    ///
    /// [`AgentError::Invalid`] when there is no such profile in `policies`; otherwise the kernel's refusal.
    pub fn load(&self, name: &str, policies: &[Bytes]) -> Result<()> {
        if policies.is_empty() {
            return Err(AgentError::Invalid(format!(
                "the AppArmor profile {name:?} comes without its policy"
            )));
        }
        let mut loaded = lock(&self.0);
        if loaded.policies != policies {
            let kernel = securityfs().attempt(|| "reach AppArmor in the guest's kernel".to_owned())?;
            // If one is refused, what there is then is not known.
            *loaded = Loaded::default();
            for policy in policies {
                match replace(&kernel, policy) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {
                        return Err(AgentError::Failed(format!(
                            "the guest's kernel has no AppArmor for the profile {name:?}"
                        )));
                    }
                    replaced => replaced
                        .attempt(|| format!("load the AppArmor profile {name:?} into the guest's kernel"))?,
                }
            }
            let list =
                list(&kernel).attempt(|| "list the AppArmor profiles of the guest's kernel".to_owned())?;
            *loaded = Loaded { policies: policies.to_owned(), names: names(&list) };
        }
        if loaded.names.contains(name) {
            return Ok(());
        }
        Err(AgentError::Invalid(format!(
            "the policy that came for the AppArmor profile {name:?} does not hold it"
        )))
    }
}

/// securityfs, mounted nowhere: nobody else can reach it, and it is gone when the descriptor is closed.
fn securityfs() -> io::Result<OwnedFd> {
    let context = fsopen("securityfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    let none = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NOEXEC
        | MountAttrFlags::MOUNT_ATTR_NODEV;
    Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, none)?)
}

/// Loads a policy; profiles that are there are replaced, for those as well whom they confine.
fn replace(securityfs: &OwnedFd, policy: &[u8]) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let mut file = File::from(openat(securityfs, "apparmor/.replace", flags, Mode::empty())?);
    // The kernel takes it whole or not at all.
    if file.write(policy)? == policy.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

fn list(securityfs: &OwnedFd) -> io::Result<String> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let mut text = String::new();
    File::from(openat(securityfs, "apparmor/profiles", flags, Mode::empty())?).read_to_string(&mut text)?;
    Ok(text)
}

/// The names in a list of lines `NAME (MODE)`.
fn names(list: &str) -> HashSet<String> {
    list.lines().filter_map(|line| Some(line.rsplit_once(" (")?.0.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_profile_is_asked_for_by_no_name_an_empty_one_and_unconfined() {
        assert_eq!((asked(None), asked(Some("")), asked(Some("unconfined"))), (None, None, None));
        assert_eq!(asked(Some("cri-containerd.apparmor.d")), Some("cri-containerd.apparmor.d"));
    }

    #[test]
    fn names_are_all_of_a_line_but_its_mode() {
        let list = "/usr/sbin/ntpd (complain)\na (b) c (enforce)\nparent//child (enforce)\n";
        assert_eq!(names(list), ["/usr/sbin/ntpd", "a (b) c", "parent//child"].map(str::to_owned).into());
    }

    #[test]
    fn a_profile_without_its_policy_is_refused() {
        let refused = Profiles::default().load("p", &[]).unwrap_err();
        assert!(matches!(&refused, AgentError::Invalid(text) if text.contains("\"p\"")), "{refused}");
    }

    #[test]
    fn a_policy_that_was_loaded_last_holds_for_all_of_its_profiles() {
        let policies = vec![Bytes::from_static(b"policy")];
        let loaded = Loaded { policies: policies.clone(), names: ["a", "b"].map(str::to_owned).into() };
        let profiles = Profiles(Mutex::new(loaded));
        profiles.load("a", &policies).unwrap();
        profiles.load("b", &policies).unwrap();
        assert!(matches!(profiles.load("c", &policies), Err(AgentError::Invalid(_))));
    }
}
