//! A container's root file system: the mounts that containerd hands over, turned into disk images for the machine.
//!
//! Nothing is mounted on the host. Every directory of the root file system becomes one read-only EROFS image, which
//! the guest mounts and lays over one another; what the container writes goes to the pod's scratch disk. Images of
//! committed snapshots are kept and shared by all pods of the node (see [`LayerStore`]).

mod build;
mod collect;
pub mod confined;
mod identity;
mod mounts;
mod place;
mod record;
pub mod scratch;
mod store;
#[cfg(test)]
mod tests;
mod unnamed;

pub use mounts::{RootfsMount, directories, maps_ids};
pub use store::{Layer, LayerStore};

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::sync::Cancelled;

/// A root file system or scratch disk that could not be prepared.
#[derive(Debug, thiserror::Error)]
pub enum RootfsError {
    /// No mounts were given.
    #[error("the container has no root file system: containerd gave no mounts for it")]
    NoMounts,
    /// Something that Ravelin does not do yet.
    #[error("not supported yet: {0}")]
    NotSupported(String),
    /// The mounts do not make sense.
    #[error("the container's root file system mount is invalid: {0}")]
    Invalid(String),
    /// A directory of the root file system cannot be read.
    #[error("cannot read the root file system directory {path}")]
    Source {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A program is not installed.
    #[error("{tool} is not installed on this node: install the package {package}")]
    MissingTool {
        /// The program.
        tool: &'static str,
        /// The package that has it.
        package: &'static str,
    },
    /// A program failed.
    #[error("{tool} cannot make {path}: {message}")]
    Tool {
        /// The program.
        tool: &'static str,
        /// What it was to make, or from what.
        path: PathBuf,
        /// Its last words.
        message: String,
    },
    /// No space is left.
    #[error("the file system that holds {path} is full")]
    DiskFull {
        /// Where space was wanted.
        path: PathBuf,
    },
    /// A file of ours could not be handled.
    #[error("cannot {what} {path}")]
    File {
        /// What was attempted.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Somebody else is at it, and does not come to an end.
    #[error("{what} {path} took more than {} s (layer_seconds in [timeouts] of ravelin.toml)", .patience.as_secs())]
    TooLong {
        /// What did.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// How long it had.
        patience: Duration,
    },
    /// The work was given up because the shim is ending.
    #[error("the preparation of the root file system was cut short")]
    Cancelled(#[from] Cancelled),
}

impl RootfsError {
    /// An error about a file of ours, or [`RootfsError::DiskFull`] if that is the reason.
    fn file(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull { path },
            _ => Self::File { what, path, source },
        }
    }
}
