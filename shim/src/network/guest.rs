//! Reads the interface that the CNI configured and says it in the agent's words.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};

use futures_util::TryStreamExt;
use ravelin_proto::agent::{Interface, Neighbour, Route, RouteMetric};
use rtnetlink::Handle;
use rtnetlink::packet_core::Nla;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{
    self as kernel, RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteNextHop,
    RouteProtocol, RouteType, RouteVia,
};

use super::{GuestNetwork, NetworkError, TAP_NAME, netlink};

/// Largest MTU a tap can have.
const MAX_MTU: u32 = 65521;
const DEFAULT_MTU: u32 = 1500;

/// The CNI's interface.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Found {
    pub index: u32,
    pub name: String,
    pub mac: Option<[u8; 6]>,
    pub mtu: u16,
}

/// Finds the pod's interface: the one with the default route, else one with addresses, else the first.
pub(super) async fn find(handle: &Handle) -> Result<Found, NetworkError> {
    let failed = |error| netlink("list the interfaces", &error);
    let links: Vec<_> = handle.link().get().execute().try_collect().await.map_err(failed)?;
    let addresses = addresses(handle).await?;
    let routes = routes(handle).await?;
    let found = choose(&links, &addresses, &routes).ok_or(NetworkError::NoInterface)?;
    Ok(found)
}

pub(super) fn choose(
    links: &[LinkMessage],
    addresses: &[AddressMessage],
    routes: &[RouteMessage],
) -> Option<Found> {
    let with_default: BTreeSet<_> = routes
        .iter()
        .filter(|route| route.header.destination_prefix_length == 0 && is_plain(route))
        .flat_map(devices)
        .collect();
    let with_address: BTreeSet<_> = addresses
        .iter()
        .filter(|message| address(message).is_some_and(|(ip, _)| !is_link_local(ip)))
        .map(|message| message.header.index)
        .collect();
    let mut candidates: Vec<_> = links
        .iter()
        .filter(|link| !link.header.flags.contains(LinkFlags::Loopback))
        // Tunnel devices that the kernel puts into every namespace are down and have no address.
        .filter(|link| link.header.flags.contains(LinkFlags::Up) || with_address.contains(&link.header.index))
        .map(read_link)
        .filter(|found| found.name != TAP_NAME)
        .collect();
    candidates.sort_by_key(|found| {
        (
            Reverse(with_default.contains(&found.index)),
            Reverse(with_address.contains(&found.index)),
            Reverse(found.mac.is_some()),
            found.index,
        )
    });
    let mut candidates = candidates.into_iter();
    let chosen = candidates.next()?;
    for other in candidates.filter(|found| with_address.contains(&found.index)) {
        tracing::warn!(
            "the pod has a second network interface, {}, which its machine does not get (it gets {})",
            other.name,
            chosen.name
        );
    }
    Some(chosen)
}

fn read_link(link: &LinkMessage) -> Found {
    let mut found = Found { index: link.header.index, name: String::new(), mac: None, mtu: 0 };
    let mut mtu = DEFAULT_MTU;
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(name) => found.name.clone_from(name),
            LinkAttribute::Address(mac) => found.mac = mac.as_slice().try_into().ok(),
            LinkAttribute::Mtu(value) => mtu = *value,
            _ => {}
        }
    }
    found.mtu = u16::try_from(mtu.min(MAX_MTU)).unwrap_or(u16::MAX);
    found
}

/// What the guest is told so that it is on the network as the CNI configured it.
pub(super) async fn describe(handle: &Handle, found: &Found) -> Result<GuestNetwork, NetworkError> {
    let mac = found.mac.ok_or_else(|| NetworkError::NotEthernet { name: found.name.clone() })?;
    let failed = |error| netlink("list the neighbours", &error);
    let neighbours: Vec<_> = handle.neighbours().get().execute().try_collect().await.map_err(failed)?;
    Ok(GuestNetwork {
        mac,
        mtu: found.mtu,
        interfaces: vec![Interface {
            mac: mac.to_vec().into(),
            name: found.name.clone(),
            mtu: u32::from(found.mtu),
            addresses: guest_addresses(&addresses(handle).await?, found.index, mac),
        }],
        routes: guest_routes(&routes(handle).await?, found.index, &found.name),
        neighbours: guest_neighbours(&neighbours, found.index, &found.name),
    })
}

async fn addresses(handle: &Handle) -> Result<Vec<AddressMessage>, NetworkError> {
    handle
        .address()
        .get()
        .execute()
        .try_collect()
        .await
        .map_err(|error| netlink("list the addresses", &error))
}

async fn routes(handle: &Handle) -> Result<Vec<RouteMessage>, NetworkError> {
    let mut all = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut request = RouteMessage::default();
        request.header.address_family = family;
        let routes = handle.route().get(request).execute().try_collect::<Vec<_>>().await;
        match routes {
            Ok(routes) => all.extend(routes),
            // A kernel without IPv6 has no such table.
            Err(error) if family == AddressFamily::Inet6 => tracing::debug!("no IPv6 routes: {error}"),
            Err(error) => return Err(netlink("list the routes", &error)),
        }
    }
    Ok(all)
}

pub(super) fn guest_addresses(messages: &[AddressMessage], index: u32, mac: [u8; 6]) -> Vec<String> {
    let own_link_local = IpAddr::V6(link_local(mac));
    messages
        .iter()
        .filter(|message| message.header.index == index)
        .filter_map(address)
        // The guest's kernel makes this one itself from the MAC.
        .filter(|(ip, _)| *ip != own_link_local)
        .map(|(ip, prefix)| format!("{ip}/{prefix}"))
        .collect()
}

/// The address of a message and its prefix length, unless the kernel gave the address up.
fn address(message: &AddressMessage) -> Option<(IpAddr, u8)> {
    let mut local = None;
    let mut peer = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => peer = Some(*ip),
            AddressAttribute::Flags(flags) if flags.contains(AddressFlags::Dadfailed) => return None,
            _ => {}
        }
    }
    // On a point-to-point link the plain address is the peer's.
    Some((local.or(peer)?, message.header.prefix_len))
}

fn is_link_local(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local())
}

/// The link-local address that a kernel makes from a MAC (RFC 4291, appendix A).
pub(super) fn link_local([a, b, c, d, e, f]: [u8; 6]) -> Ipv6Addr {
    let pair = |high: u8, low: u8| u16::from_be_bytes([high, low]);
    Ipv6Addr::new(0xfe80, 0, 0, 0, pair(a ^ 2, b), pair(c, 0xff), pair(0xfe, d), pair(e, f))
}

/// A unicast route of the main table that the guest's kernel will not make by itself.
fn is_plain(route: &RouteMessage) -> bool {
    let table = route
        .attributes
        .iter()
        .find_map(|attribute| if let RouteAttribute::Table(table) = attribute { Some(*table) } else { None })
        .unwrap_or_else(|| u32::from(route.header.table));
    table == u32::from(RouteHeader::RT_TABLE_MAIN)
        && route.header.kind == RouteType::Unicast
        && route.header.protocol != RouteProtocol::Kernel
        && !route.header.flags.contains(RouteFlags::Cloned)
}

fn hops(route: &RouteMessage) -> impl Iterator<Item = &RouteNextHop> {
    route.attributes.iter().flat_map(|attribute| match attribute {
        RouteAttribute::MultiPath(hops) => hops.as_slice(),
        _ => &[],
    })
}

/// Indexes of the interfaces a route leads to.
fn devices(route: &RouteMessage) -> Vec<u32> {
    let single = route.attributes.iter().filter_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    });
    single.chain(hops(route).map(|hop| hop.interface_index)).collect()
}

pub(super) fn guest_routes(messages: &[RouteMessage], index: u32, device: &str) -> Vec<Route> {
    let mut routes: Vec<_> = messages
        .iter()
        .filter(|route| is_plain(route))
        .filter_map(|route| guest_route(route, index, device))
        .collect();
    // A gateway must be reachable before a route through it is added.
    routes.sort_by_key(|route| !route.gateway.is_empty());
    routes
}

fn guest_route(message: &RouteMessage, index: u32, device: &str) -> Option<Route> {
    if !devices(message).contains(&index) {
        return None;
    }
    let header = &message.header;
    let mut route = Route {
        device: device.to_owned(),
        scope: u32::from(u8::from(header.scope)),
        family: if header.address_family == AddressFamily::Inet6 { 6 } else { 4 },
        onlink: header.flags.contains(RouteFlags::Onlink),
        ..Route::default()
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(to) if header.destination_prefix_length > 0 => {
                route.destination = format!("{}/{}", text(to)?, header.destination_prefix_length);
            }
            RouteAttribute::PrefSource(from) => route.source = text(from)?,
            RouteAttribute::Priority(priority) => route.priority = *priority,
            RouteAttribute::Metrics(metrics) => route.metrics = metrics.iter().filter_map(metric).collect(),
            other => set_gateway(&mut route, other)?,
        }
    }
    // The guest has one device, so of several next hops the first on it is taken.
    if let Some(hop) = hops(message).find(|hop| hop.interface_index == index) {
        route.onlink |= hop.flags.bits() & 4 != 0;
        for attribute in &hop.attributes {
            set_gateway(&mut route, attribute)?;
        }
    }
    Some(route)
}

/// One of a route's metrics, also one that only the kernel knows; `None` if it is no number.
fn metric(metric: &kernel::RouteMetric) -> Option<RouteMetric> {
    let mut told = RouteMetric { kind: u32::from(metric.kind()), ..RouteMetric::default() };
    if let kernel::RouteMetric::CcAlgo(name) = metric {
        told.congestion_control.clone_from(name);
        return Some(told);
    }
    let mut value = [0; 4];
    if metric.value_len() != value.len() {
        return None;
    }
    metric.emit_value(&mut value);
    told.value = u32::from_ne_bytes(value);
    Some(told)
}

/// `None` when the gateway is of a kind that the guest cannot be told.
fn set_gateway(route: &mut Route, attribute: &RouteAttribute) -> Option<()> {
    match attribute {
        RouteAttribute::Gateway(gateway) => route.gateway = text(gateway)?,
        RouteAttribute::Via(RouteVia::Inet(gateway)) => route.gateway = gateway.to_string(),
        RouteAttribute::Via(RouteVia::Inet6(gateway)) => route.gateway = gateway.to_string(),
        RouteAttribute::Via(_) => return None,
        _ => {}
    }
    Some(())
}

fn text(address: &RouteAddress) -> Option<String> {
    match address {
        RouteAddress::Inet(ip) => Some(ip.to_string()),
        RouteAddress::Inet6(ip) => Some(ip.to_string()),
        _ => None,
    }
}

pub(super) fn guest_neighbours(messages: &[NeighbourMessage], index: u32, device: &str) -> Vec<Neighbour> {
    messages
        .iter()
        .filter(|message| {
            message.header.ifindex == index && message.header.state == NeighbourState::Permanent
        })
        .filter_map(|message| {
            let mut neighbour = Neighbour { device: device.to_owned(), ..Neighbour::default() };
            for attribute in &message.attributes {
                match attribute {
                    NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => {
                        neighbour.address = ip.to_string();
                    }
                    NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => {
                        neighbour.address = ip.to_string();
                    }
                    NeighbourAttribute::LinkLayerAddress(mac) => neighbour.mac = mac.clone().into(),
                    _ => {}
                }
            }
            (!neighbour.address.is_empty() && neighbour.mac.len() == 6).then_some(neighbour)
        })
        .collect()
}
