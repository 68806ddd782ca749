//! Containers for tests, without anything in the guest.

use std::sync::Arc;

use super::{Container, Init, Request};
use crate::sandbox::{ContainerLimits, Pod};
use crate::stdio::{Io, Paths};

/// A container that was made and not started.
pub fn container(pod: &Arc<Pod>, io: Io, limits: ContainerLimits) -> Arc<Container> {
    let request =
        Request { id: "c".to_owned(), bundle: String::new(), rootfs: Vec::new(), paths: Paths::default() };
    let init = Init { layers: Vec::new(), limits, terminal: false };
    Arc::new(Container::new(request, Arc::clone(pod), init, io))
}
