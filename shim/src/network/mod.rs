//! The pod's network: a tap joined to the interface that the CNI made, and what the guest must know about it.
//!
//! Everything happens inside the pod's network namespace. Each frame that arrives at the CNI's interface is handed to
//! the tap, and each frame of the guest leaves through the CNI's interface, by tc filters at ingress: before the
//! namespace's own network stack sees them. So the interface keeps its addresses for everyone who looks at it, and the
//! stack behind it never answers in the guest's place.

mod guest;
mod loopback;
mod netns;
mod redirect;
mod sk_lookup;
mod tap;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use ravelin_proto::agent::{Interface, Neighbour, Route};
use rtnetlink::LinkUnspec;
use rtnetlink::packet_route::link::{AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute};

pub use loopback::Loopback;

/// Name of the tap in the pod's network namespace.
pub const TAP_NAME: &str = "ravelin0";

/// A pod's network that could not be joined to its machine.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The namespace is not there.
    #[error("the pod's network namespace {path} is gone")]
    Gone {
        /// Its path.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The path is something else.
    #[error("{path} is not a network namespace that can be entered")]
    NotANamespace {
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A thread for work in the namespace could not be had, or was lost.
    #[error("cannot work in a pod's network namespace")]
    Thread(#[source] io::Error),
    /// The CNI left no usable interface.
    #[error("the pod's network namespace has no Ethernet interface: the CNI configured none")]
    NoInterface,
    /// The CNI's interface is no Ethernet device.
    #[error("not supported yet: the pod's interface {name} is not an Ethernet device")]
    NotEthernet {
        /// Its name.
        name: String,
    },
    /// The tap could not be made.
    #[error("cannot {what} the tap {TAP_NAME} in the pod's network namespace")]
    Tap {
        /// What was attempted.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A netlink request failed.
    #[error("cannot {what} in the pod's network namespace: {reason}")]
    Netlink {
        /// What was attempted.
        what: &'static str,
        /// The kernel's answer.
        reason: String,
    },
}

/// What the guest is told about its network.
#[derive(Debug, Clone, PartialEq)]
pub struct GuestNetwork {
    /// MAC address of the guest's network device: the same as the CNI's interface has.
    pub mac: [u8; 6],
    /// MTU of the device.
    pub mtu: u16,
    /// The one interface.
    pub interfaces: Vec<Interface>,
    /// Its routes, in an order in which they can be added.
    pub routes: Vec<Route>,
    /// Its permanent neighbours.
    pub neighbours: Vec<Neighbour>,
}

/// A tap joined to a pod's interface.
#[derive(Debug)]
pub struct Attachment {
    /// What the guest is told.
    pub guest: GuestNetwork,
    /// The host's way to the pod's loopback address, where the node's kernel has one to offer.
    pub loopback: Option<Loopback>,
    taps: Vec<OwnedFd>,
}

impl Attachment {
    /// The tap's queues, non-blocking, once; the tap lives as long as one of them is open somewhere.
    pub fn take_taps(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.taps)
    }
}

/// Joins a new tap with `queues` queues (1 to 32) to the interface of the network namespace at `netns`.
///
/// # Errors
/// When the namespace is gone, has no interface, or the kernel refuses; nothing is left behind then.
pub async fn attach(netns: &Path, queues: u8) -> Result<Attachment, NetworkError> {
    let path = netns.to_owned();
    netns::within(netns, move |handle| async move {
        redirect::remove(&handle).await?;
        let joined = join(&handle, queues).await;
        if joined.is_err() {
            let _ = redirect::remove(&handle).await;
        }
        let (guest, taps) = joined?;
        // A pod whose ports cannot be forwarded is still a pod.
        let loopback = Loopback::listen()
            .inspect_err(|error| {
                tracing::warn!("ports of the pod in {} cannot be forwarded: {error}", path.display());
            })
            .ok();
        Ok(Attachment { guest, loopback, taps })
    })
    .await
}

async fn join(handle: &rtnetlink::Handle, queues: u8) -> Result<(GuestNetwork, Vec<OwnedFd>), NetworkError> {
    let interface = guest::find(handle).await?;
    let guest = guest::describe(handle, &interface).await?;
    let taps = tap::create(queues.clamp(1, 32))?;
    let tap = redirect::link_index(handle, TAP_NAME).await?;
    // The namespace's stack must not speak on the tap: without a link-local address it solicits no router. A kernel without
    // IPv6 does not anyway.
    let silent = LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(
        In6AddrGenMode::None,
    )])]);
    let silent = LinkUnspec::new_with_index(tap).append_extra_attribute(silent).build();
    let _ = handle.link().set(silent).execute().await;
    let up = LinkUnspec::new_with_index(tap).mtu(u32::from(guest.mtu)).up().build();
    handle.link().set(up).execute().await.map_err(|error| netlink("set the tap up", &error))?;
    redirect::add(handle, interface.index, tap).await?;
    redirect::add(handle, tap, interface.index).await?;
    Ok((guest, taps))
}

/// Removes what [`attach`] left in the namespace at `netns`; succeeds when there is nothing, or no namespace any more.
///
/// # Errors
/// When the kernel refuses.
pub async fn detach(netns: &Path) -> Result<(), NetworkError> {
    match netns::within(netns, |handle| async move { redirect::remove(&handle).await }).await {
        // Somebody removed the namespace, and with it all that was in it.
        Err(NetworkError::Gone { .. } | NetworkError::NotANamespace { .. }) => Ok(()),
        other => other,
    }
}

fn netlink(what: &'static str, error: &rtnetlink::Error) -> NetworkError {
    let reason = match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io().to_string(),
        other => other.to_string(),
    };
    NetworkError::Netlink { what, reason }
}
