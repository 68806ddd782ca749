//! Sysctls, written in the guest's own namespaces, which are the pod's.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::PathBuf;

use crate::error::{AgentError, Attempt, Result};
use crate::log;

/// Writes sysctls by name, in the order of their names.
///
/// # Errors
///
/// [`AgentError::Invalid`] for a name that is none; otherwise the kernel's refusal.
pub fn apply<'a>(sysctls: impl IntoIterator<Item = (&'a String, &'a String)>) -> Result<()> {
    let sysctls: BTreeMap<_, _> = sysctls.into_iter().collect();
    for (name, value) in sysctls {
        let path = path(name)?;
        fs::write(&path, value).attempt(|| format!("set sysctl {name} to {value:?}"))?;
    }
    Ok(())
}

/// Takes over the node's settings of what has no namespace, as far as this kernel has them: a pod runs without one.
pub fn adopt(tunables: &HashMap<String, String>) {
    for (name, value) in tunables {
        if let Err(error) = apply([(name, value)]) {
            log!("the node's value is not taken over: {error}");
        }
    }
}

/// The file of a sysctl. Dots separate its parts; if it has slashes they do, and dots belong to the parts, as in an
/// interface's name.
fn path(name: &str) -> Result<PathBuf> {
    let separator = if name.contains('/') { '/' } else { '.' };
    let mut path = PathBuf::from("/proc/sys");
    for part in name.split(separator) {
        let plain =
            |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'@' | b':');
        if part.is_empty() || part == "." || part == ".." || !part.bytes().all(plain) {
            return Err(AgentError::Invalid(format!("{name:?} is no name of a sysctl")));
        }
        path.push(part);
    }
    Ok(path)
}

/// What only fuzz targets reach.
#[cfg(fuzzing)]
pub mod fuzzing {
    use super::{PathBuf, Result};

    /// The file of a sysctl.
    ///
    /// # Errors
    ///
    /// When it is no name of one.
    pub fn path(name: &str) -> Result<PathBuf> {
        super::path(name)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn names_become_files() {
        assert_eq!(path("net.ipv4.ip_forward").unwrap(), Path::new("/proc/sys/net/ipv4/ip_forward"));
        assert_eq!(
            path("net/ipv4/conf/eth0.5/mtu").unwrap(),
            Path::new("/proc/sys/net/ipv4/conf/eth0.5/mtu")
        );
    }

    #[test]
    fn names_that_leave_proc_sys_are_refused() {
        for name in ["", "..", "a..b", "/etc/passwd", "net/../../../etc", "a b"] {
            assert!(path(name).is_err(), "{name:?}");
        }
    }
}
