//! The policy of a container's AppArmor profile, for the guest's kernel.
//!
//! containerd names a profile that the node's kernel has loaded, wherever its text came from; its own, RuntimeDefault, is in no
//! file at all. So the kernel is asked first: it gives back the binary policy that it was given ([`loaded`]). One that keeps
//! none is asked in vain; then the profile is looked for in `/etc/apparmor.d` and compiled ([`compiled`]).

mod compiled;
mod loaded;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;

use crate::sync::{Cancelled, blocking};
use compiled::Sources;

/// Where the kernel shows the profiles of the shim's policy namespace.
const LOADED: &str = "/sys/kernel/security/apparmor/policy/profiles";
/// Largest policy, in bytes. Those of large programs have some hundred thousand.
const MAX_BYTES: u64 = 1 << 20;
/// Time for compiling one.
const PATIENCE: Duration = Duration::from_secs(30);

/// A profile whose policy cannot be had. The container does not run then.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// The kernel does not give back what it shows.
    #[error("cannot read the AppArmor profile {name:?} from the node's kernel in {path}")]
    Read {
        /// The profile.
        name: String,
        /// The kernel's file or directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is larger than any should be.
    #[error("the policy of the AppArmor profile {name:?} has more than {} KiB", MAX_BYTES >> 10)]
    TooLarge {
        /// The profile.
        name: String,
    },
    /// The kernel has not kept it, and it cannot be compiled.
    #[error(
        "the AppArmor profile {name:?} cannot be brought into the pod's machine: the node's kernel has not kept its policy (apparmor.export_binary, CONFIG_SECURITY_APPARMOR_EXPORT_BINARY), and {reason}. Load it with apparmor_parser from a file in {}, or let the container be Unconfined",
        compiled::DIRECTORY
    )]
    Unavailable {
        /// The profile.
        name: String,
        /// Why it cannot be compiled.
        reason: String,
    },
    /// The shim is ending.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

/// The policies to be loaded, in their order, for the profile `name` of the node.
///
/// # Errors
/// When it cannot be had, or is too large.
pub async fn policies(name: &str) -> Result<Vec<Bytes>, ProfileError> {
    find(Path::new(LOADED), &Sources::of_the_node(), name).await
}

async fn find(kernel: &Path, sources: &Sources, name: &str) -> Result<Vec<Bytes>, ProfileError> {
    let (directory, asked) = (kernel.to_owned(), name.to_owned());
    let kept = blocking(move || loaded::read(&directory, &asked)).await?;
    if !kept.is_empty() {
        return Ok(kept.into_iter().map(Bytes::from).collect());
    }
    let compiled = tokio::time::timeout(PATIENCE, sources.compile(name)).await;
    let reason = match compiled {
        Ok(Ok(policy)) => return Ok(vec![policy.into()]),
        Ok(Err(reason)) => reason,
        Err(_) => format!("apparmor_parser took more than {} s", PATIENCE.as_secs()),
    };
    Err(ProfileError::Unavailable { name: name.to_owned(), reason })
}

#[cfg(test)]
mod tests;
