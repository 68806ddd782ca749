//! The guest's network: what the CNI configured on the host's side, repeated inside.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use futures_util::TryStreamExt;
use ravelin_proto::agent as api;
use rtnetlink::packet_core::DefaultNla;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags};
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::packet_route::route::{RouteAttribute, RouteMetric, RouteScope};
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};
use tokio::task::JoinHandle;

use crate::error::{AgentError, Attempt, Result};
use crate::namespaces::{Namespaces, within};
use crate::services::Services;
use crate::sync::blocking;
use crate::sysctl;

/// Names and addresses interfaces, then adds neighbours and routes; sysctls in between, when names are settled and
/// nothing is up yet.
///
/// # Errors
///
/// [`AgentError::Invalid`] for malformed addresses, [`AgentError::NotFound`] for a missing interface, otherwise the
/// kernel's refusal.
pub async fn configure(services: &Services, request: &api::SetupSandboxRequest) -> Result<()> {
    let namespaces = services.namespaces();
    if let Some(namespaces) = namespaces {
        let (connection, handle) = connect()?;
        let done = hand_over(&handle, request, namespaces).await;
        connection.abort();
        done?;
    }
    if request.interfaces.is_empty() {
        return set_sysctls(namespaces, request).await;
    }
    let (connection, handle) = in_the_pod(namespaces, connect).await?;
    let done = configure_with(&handle, namespaces, request).await;
    connection.abort();
    done
}

/// [`within`], without waiting for it here.
async fn in_the_pod<T: Send + 'static>(
    namespaces: Option<&Arc<Namespaces>>,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let namespaces = namespaces.cloned();
    blocking(move || within(namespaces.as_deref(), work)).await
}

/// Brings the loopback interface of the calling thread's network namespace up.
///
/// # Errors
///
/// When the kernel refuses.
pub fn loopback_up() -> io::Result<()> {
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?;
    // SAFETY: an all-zero ifreq is a valid value of that plain C struct.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo\0") {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads an ifreq; `request` is one and lives through the call.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A netlink socket of the calling thread's network namespace, served until the task is aborted.
fn connect() -> Result<(JoinHandle<()>, Handle)> {
    let (connection, handle, _) = rtnetlink::new_connection()
        .map_err(|source| AgentError::Os { attempt: "open a netlink socket".to_owned(), source })?;
    Ok((tokio::spawn(connection), handle))
}

/// Moves the interfaces into the pod's network namespace, where nothing is yet but a loopback that is down.
async fn hand_over(
    handle: &Handle,
    request: &api::SetupSandboxRequest,
    namespaces: &Arc<Namespaces>,
) -> Result<()> {
    for interface in &request.interfaces {
        let (index, _) = find(handle, interface).await?;
        let message = LinkUnspec::new_with_index(index).setns_by_fd(namespaces.network().as_raw_fd()).build();
        let done = handle.link().set(message).execute().await;
        done.map_err(|error| {
            failed(&format!("move {} to the pod's network namespace", interface.name), &error)
        })?;
    }
    in_the_pod(Some(namespaces), || loopback_up().attempt(|| "bring the pod's loopback up".to_owned())).await
}

async fn set_sysctls(namespaces: Option<&Arc<Namespaces>>, request: &api::SetupSandboxRequest) -> Result<()> {
    let sysctls = request.sysctls.clone();
    in_the_pod(namespaces, move || sysctl::apply(&sysctls)).await
}

async fn configure_with(
    handle: &Handle,
    namespaces: Option<&Arc<Namespaces>>,
    request: &api::SetupSandboxRequest,
) -> Result<()> {
    let mut indexes = HashMap::new();
    for interface in &request.interfaces {
        let index = name(handle, interface).await?;
        indexes.insert(interface.name.as_str(), index);
    }
    set_sysctls(namespaces, request).await?;
    for interface in &request.interfaces {
        let index = index_of(&indexes, &interface.name)?;
        // The address is the pod's alone, and the link-local one need not wait a second to be sure of that.
        let accept_dad = format!("/proc/sys/net/ipv6/conf/{}/accept_dad", interface.name);
        in_the_pod(namespaces, move || {
            let _ = std::fs::write(accept_dad, "0");
            Ok(())
        })
        .await?;
        for address in &interface.addresses {
            add_address(handle, index, address).await?;
        }
        let message = LinkUnspec::new_with_index(index).up().build();
        let done = handle.link().set(message).execute().await;
        done.map_err(|error| failed(&format!("bring {} up", interface.name), &error))?;
    }
    for neighbour in &request.neighbours {
        let index = index_of(&indexes, &neighbour.device)?;
        let address = parse_ip(&neighbour.address)?;
        let add = handle.neighbours().add(index, address).link_layer_address(&neighbour.mac).replace();
        let done = add.execute().await;
        done.map_err(|error| failed(&format!("add the neighbour {address}"), &error))?;
    }
    // Routes without a gateway first: the others' gateways are reached through them.
    let (direct, via): (Vec<_>, Vec<_>) = request.routes.iter().partition(|route| route.gateway.is_empty());
    for route in direct.into_iter().chain(via) {
        add_route(handle, index_of(&indexes, &route.device)?, route).await?;
    }
    Ok(())
}

/// Finds an interface by MAC address; answers its index, and whether it has its name.
async fn find(handle: &Handle, interface: &api::Interface) -> Result<(u32, bool)> {
    let mut links = handle.link().get().execute();
    let mut found = None;
    while let Some(link) = links.try_next().await.map_err(|error| failed("list interfaces", &error))? {
        let has_mac = |attribute: &LinkAttribute| matches!(attribute, LinkAttribute::Address(mac) if *mac == interface.mac);
        if link.attributes.iter().any(has_mac) {
            let named = |attribute: &LinkAttribute| matches!(attribute, LinkAttribute::IfName(name) if *name == interface.name);
            found = Some((link.header.index, link.attributes.iter().any(named)));
        }
    }
    found.ok_or_else(|| {
        AgentError::NotFound(format!("no interface has the MAC address of {}", interface.name))
    })
}

/// Gives an interface name and MTU; answers its index.
async fn name(handle: &Handle, interface: &api::Interface) -> Result<u32> {
    let valid = |byte: u8| byte.is_ascii_graphic() && byte != b'/';
    if interface.name.is_empty() || interface.name.len() > 15 || !interface.name.bytes().all(valid) {
        return Err(AgentError::Invalid(format!("{:?} is no name for an interface", interface.name)));
    }
    let (index, named) = find(handle, interface).await?;
    let mut message = LinkUnspec::new_with_index(index);
    if !named {
        message = message.name(interface.name.clone());
    }
    if interface.mtu != 0 {
        message = message.mtu(interface.mtu);
    }
    let done = handle.link().set(message.build()).execute().await;
    done.map_err(|error| {
        failed(&format!("name an interface {} with MTU {}", interface.name, interface.mtu), &error)
    })?;
    Ok(index)
}

async fn add_address(handle: &Handle, index: u32, text: &str) -> Result<()> {
    let (address, prefix) = parse_cidr(text)?;
    let mut add = handle.address().add(index, address, prefix);
    if address.is_ipv6() {
        let flags = AddressFlags::Nodad | AddressFlags::Permanent;
        add.message_mut().attributes.push(AddressAttribute::Flags(flags));
    }
    add.replace().execute().await.map_err(|error| failed(&format!("add the address {text}"), &error))
}

async fn add_route(handle: &Handle, index: u32, route: &api::Route) -> Result<()> {
    let mut message = RouteMessageBuilder::<IpAddr>::new().output_interface(index);
    let impossible = |text: &str| AgentError::Invalid(format!("{text:?} does not fit into a route"));
    let v6 = route.family == 6;
    if route.destination.is_empty() {
        // The family alone: every address of it.
        let any = if v6 { IpAddr::from([0_u8; 16]) } else { IpAddr::from([0_u8; 4]) };
        message = message.destination_prefix(any, 0).map_err(|_| impossible("default"))?;
    } else {
        let (address, prefix) = parse_cidr(&route.destination)?;
        message = message.destination_prefix(address, prefix).map_err(|_| impossible(&route.destination))?;
    }
    if !route.gateway.is_empty() {
        message = message.gateway(parse_ip(&route.gateway)?).map_err(|_| impossible(&route.gateway))?;
    }
    if !route.source.is_empty() {
        message = message.pref_source(parse_ip(&route.source)?).map_err(|_| impossible(&route.source))?;
    }
    if !v6 {
        // IPv6 has no scopes of routes.
        message = message.scope(RouteScope::from(u8::try_from(route.scope).unwrap_or_default()));
    }
    if route.priority != 0 {
        message = message.priority(route.priority);
    }
    if route.onlink {
        message = message.onlink();
    }
    let mut message = message.build();
    let asked = route.metrics.clone();
    let metrics: Vec<_> = blocking(move || Ok(asked.iter().filter_map(metric).collect())).await?;
    if !metrics.is_empty() {
        message.attributes.push(RouteAttribute::Metrics(metrics));
    }
    let done = handle.route().add(message).replace().execute().await;
    done.map_err(|error| {
        let to = if route.destination.is_empty() { "default" } else { &route.destination };
        failed(&format!("add the route {to} via {:?} dev {}", route.gateway, route.device), &error)
    })
}

/// A route's metric as the kernel is told it; `None` for a congestion control that this kernel does not have: the pod is
/// better off with another than without its route.
fn metric(metric: &api::RouteMetric) -> Option<RouteMetric> {
    let name = &metric.congestion_control;
    if name.is_empty() {
        let kind = u16::try_from(metric.kind).ok()?;
        return Some(RouteMetric::Other(DefaultNla::new(kind, metric.value.to_ne_bytes().to_vec())));
    }
    let known =
        std::fs::read_to_string("/proc/sys/net/ipv4/tcp_available_congestion_control").unwrap_or_default();
    if known.split_whitespace().any(|known| known == name) {
        return Some(RouteMetric::CcAlgo(name.clone()));
    }
    crate::log!("a route asks for the congestion control {name:?}, which this kernel does not have");
    None
}

fn index_of(indexes: &HashMap<&str, u32>, name: &str) -> Result<u32> {
    indexes.get(name).copied().ok_or_else(|| AgentError::Invalid(format!("there is no interface {name:?}")))
}

fn parse_ip(text: &str) -> Result<IpAddr> {
    text.parse().map_err(|_| AgentError::Invalid(format!("{text:?} is no IP address")))
}

/// Reads an address with its prefix's length.
fn parse_cidr(text: &str) -> Result<(IpAddr, u8)> {
    let invalid = || AgentError::Invalid(format!("{text:?} is no address with a prefix"));
    let (address, prefix) = text.split_once('/').ok_or_else(invalid)?;
    let address: IpAddr = address.parse().map_err(|_| invalid())?;
    let prefix: u8 = prefix.parse().map_err(|_| invalid())?;
    if prefix > if address.is_ipv4() { 32 } else { 128 } {
        return Err(invalid());
    }
    Ok((address, prefix))
}

fn failed(attempt: &str, error: &rtnetlink::Error) -> AgentError {
    AgentError::Failed(format!("{attempt}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_congestion_control_is_left_out_and_every_number_is_kept() {
        use rtnetlink::packet_core::Nla;
        let told = |kind, value, name: &str| {
            metric(&api::RouteMetric { kind, value, congestion_control: name.to_owned() })
        };
        let mtu = told(2, 1400, "").unwrap();
        let mut value = [0; 4];
        mtu.emit_value(&mut value);
        assert_eq!((mtu.kind(), u32::from_ne_bytes(value)), (2, 1400));
        assert_eq!(told(16, 0, "no-such-control"), None);
        assert_eq!(told(70_000, 1, ""), None);
    }

    #[test]
    fn addresses_need_a_fitting_prefix() {
        assert_eq!(parse_cidr("10.1.2.3/24").unwrap(), ("10.1.2.3".parse().unwrap(), 24));
        assert_eq!(parse_cidr("fd00::3/64").unwrap(), ("fd00::3".parse().unwrap(), 64));
        for bad in ["10.1.2.3", "10.1.2.3/33", "fd00::1/129", "x/8", "1.2.3.4/-1"] {
            assert!(parse_cidr(bad).is_err(), "{bad}");
        }
    }
}
