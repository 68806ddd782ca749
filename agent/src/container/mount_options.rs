//! The options of a container's mounts: those that take effect pass, any other is refused by its name.

use oci_spec::runtime::Mount;

use crate::error::{AgentError, Result};
use crate::namespaces::Ids;

/// Which way mounts made later, below a mount, spread between containers that share its volume (`mount(8)`, shared
/// subtrees).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Propagation {
    /// Not at all.
    #[default]
    Private,
    /// Into the container: Kubernetes's `HostToContainer`.
    Slave,
    /// Both ways: Kubernetes's `Bidirectional`.
    Shared,
}

/// Options of any mount, which the runtime gives effect.
const FLAGS: [&str; 39] = [
    "defaults",
    "ro",
    "rw",
    "suid",
    "nosuid",
    "dev",
    "nodev",
    "exec",
    "noexec",
    "atime",
    "noatime",
    "diratime",
    "nodiratime",
    "relatime",
    "norelatime",
    "strictatime",
    "nostrictatime",
    "bind",
    "rbind",
    "rro",
    "rrw",
    "rsuid",
    "rnosuid",
    "rdev",
    "rnodev",
    "rexec",
    "rnoexec",
    "ratime",
    "rnoatime",
    "rdiratime",
    "rnodiratime",
    "rrelatime",
    "rnorelatime",
    "rstrictatime",
    "rnostrictatime",
    "rsymfollow",
    "rnosymfollow",
    "sync",
    "async",
];

/// Options that runc knows and that change nothing about the mounts a container can have.
const IDLE: [&str; 17] = [
    "symfollow",
    "dirsync",
    "mand",
    "nomand",
    "acl",
    "noacl",
    "iversion",
    "noiversion",
    "silent",
    "loud",
    "lazytime",
    "nolazytime",
    // containerd passes on what the node's cgroup hierarchy is mounted with: the guest's has options of its own.
    "nsdelegate",
    "memory_recursiveprot",
    "memory_localevents",
    "memory_hugetlb_accounting",
    "favordynmods",
];

/// File systems that a container can have mounted, with the options of their own.
const FILE_SYSTEMS: [(&str, &[&str]); 8] = [
    ("bind", &[]),
    ("proc", &["hidepid", "gid", "subset"]),
    ("sysfs", &[]),
    ("tmpfs", &["size", "nr_blocks", "nr_inodes", "mode", "uid", "gid", "huge", "mpol", "noswap"]),
    ("devpts", &["newinstance", "ptmxmode", "mode", "uid", "gid", "max"]),
    ("mqueue", &[]),
    ("cgroup", &[]),
    ("cgroup2", &[]),
];

/// Whether something that exists is mounted, rather than a new file system.
#[must_use]
pub fn is_bind(mount: &Mount) -> bool {
    mount.typ().as_deref() == Some("bind") || has(mount, "bind") || has(mount, "rbind")
}

/// Whether a mount is of the container's cgroups, and the container may change them.
#[must_use]
pub fn is_writable_cgroup(mount: &Mount) -> bool {
    matches!(mount.typ().as_deref(), Some("cgroup" | "cgroup2")) && !has(mount, "ro")
}

/// Whether a mount has an option.
#[must_use]
pub fn has(mount: &Mount, option: &str) -> bool {
    mount.options().iter().flatten().any(|each| each == option)
}

/// What a mount's options say about propagation; the last one counts.
#[must_use]
pub fn propagation(mount: &Mount) -> Propagation {
    mount
        .options()
        .iter()
        .flatten()
        .filter_map(|option| of_propagation(option))
        .next_back()
        .unwrap_or_default()
}

fn of_propagation(option: &str) -> Option<Propagation> {
    match option {
        "private" | "rprivate" => Some(Propagation::Private),
        "slave" | "rslave" => Some(Propagation::Slave),
        "shared" | "rshared" => Some(Propagation::Shared),
        _ => None,
    }
}

/// The options that a mount keeps. Its files have the pod's users where the pod has a user namespace, which has these `ids`,
/// whether a mount asks for that or not.
///
/// # Errors
///
/// [`AgentError::Invalid`] with the name of what cannot be had.
pub fn allowed(mount: &Mount, ids: Option<&Ids>) -> Result<Vec<String>> {
    let refused = |what: String| {
        Err(AgentError::Invalid(format!(
            "mount at {}: {what} is not supported",
            mount.destination().display()
        )))
    };
    let kind = if is_bind(mount) { "bind" } else { mount.typ().as_deref().unwrap_or_default() };
    let Some((_, own)) = FILE_SYSTEMS.iter().find(|(name, _)| *name == kind) else {
        return refused(format!("the file system {kind:?}"));
    };
    let mappings = [mount.uid_mappings(), mount.gid_mappings()].map(|all| all.as_deref().unwrap_or_default());
    match (ids, mappings) {
        (_, [[], []]) => {}
        (Some(ids), [users, groups]) if ids.are(users, groups) => {}
        _ => return refused("a mapping of user ids other than its pod's".to_owned()),
    }
    let mut kept = Vec::new();
    for option in mount.options().iter().flatten() {
        let name = option.split_once('=').map_or(option.as_str(), |(name, _)| name);
        if ids.is_some() && matches!(option.as_str(), "idmap" | "ridmap") {
            continue;
        }
        if FLAGS.contains(&option.as_str()) || own.contains(&name) {
            kept.push(option.clone());
        } else if option == "nosymfollow" {
            // libcontainer knows only the one for whole trees.
            kept.push("rnosymfollow".to_owned());
        } else if !option.is_empty() && of_propagation(option).is_none() && !IDLE.contains(&option.as_str()) {
            return refused(format!("the option {option:?}"));
        }
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn mount(kind: &str, options: &[&str]) -> Mount {
        let mount = json!({ "destination": "/x", "type": kind, "source": "x", "options": options });
        serde_json::from_value(mount).unwrap()
    }

    #[test]
    fn what_containerd_asks_for_passes() {
        for (kind, options) in [
            ("proc", &["nosuid", "noexec", "nodev"][..]),
            ("tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            ("devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
            ("mqueue", &["nosuid", "noexec", "nodev"]),
            ("sysfs", &["nosuid", "noexec", "nodev", "ro"]),
            ("cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
            ("bind", &["rbind", "ro", "rro"]),
        ] {
            assert_eq!(allowed(&mount(kind, options), None).unwrap(), options, "{kind}");
        }
        assert_eq!(
            allowed(&mount("bind", &["rbind", "rprivate", "nosymfollow", "silent"]), None).unwrap(),
            ["rbind", "rnosymfollow"]
        );
        assert_eq!(
            allowed(&mount("cgroup", &["ro", "nsdelegate", "memory_recursiveprot"]), None).unwrap(),
            ["ro"]
        );
    }

    #[test]
    fn what_has_no_effect_is_refused_by_its_name() {
        for (kind, option) in [
            ("tmpfs", "tmpcopyup"),
            ("bind", "remount"),
            ("bind", "idmap"),
            ("bind", "size=5"),
            ("bind", "unbindable"),
            ("proc", "lowerdir=/etc"),
            ("sysfs", "nonsense"),
        ] {
            let text = allowed(&mount(kind, &["ro", option]), None).unwrap_err().to_string();
            assert!(text.contains(option) && text.contains("/x"), "{text}");
        }
        for kind in ["ext4", "overlay", "", "nfs"] {
            assert!(allowed(&mount(kind, &[]), None).unwrap_err().to_string().contains(&format!("{kind:?}")));
        }
        let mut mapped = mount("bind", &[]);
        mapped.set_uid_mappings(Some(vec![oci_spec::runtime::LinuxIdMapping::default()]));
        assert!(allowed(&mapped, None).is_err());
    }

    #[test]
    fn the_last_word_on_propagation_counts() {
        assert_eq!(propagation(&mount("bind", &["rbind"])), Propagation::Private);
        assert_eq!(propagation(&mount("bind", &["rbind", "rslave", "rw"])), Propagation::Slave);
        assert_eq!(propagation(&mount("bind", &["rprivate", "rshared"])), Propagation::Shared);
    }
}
