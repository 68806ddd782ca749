use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteType};

use super::{NetworkError, TAP_NAME, attach, detach, guest, netns};
use crate::testing::skip;

const MAC: [u8; 6] = [0x02, 0x11, 0x22, 0x33, 0x44, 0x55];

/// Two named network namespaces joined by a veth pair: `pod` with eth0, and its peer. Removed at the end.
struct Pair {
    pod: String,
    peer: String,
}

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

fn show(netns: &str, program: &str, arguments: &str) -> String {
    let output = Command::new("ip")
        .args(["netns", "exec", netns, program])
        .args(arguments.split_whitespace())
        .output()
        .unwrap();
    assert!(output.status.success(), "{program} {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

impl Pair {
    /// `None`, with a reason printed, where this may not be done.
    fn new(name: &str) -> Option<Self> {
        if !rustix::process::geteuid().is_root() || !Path::new("/dev/net/tun").exists() {
            skip("it needs root and /dev/net/tun");
            return None;
        }
        if Command::new("ip").arg("-V").output().is_err() {
            skip("it needs ip (iproute2)");
            return None;
        }
        let id = std::process::id();
        let pair = Self { pod: format!("rvt-{name}-{id}-pod"), peer: format!("rvt-{name}-{id}-peer") };
        let (pod, peer) = (&pair.pod, &pair.peer);
        ip(&format!("netns add {pod}"));
        ip(&format!("netns add {peer}"));
        ip(&format!(
            "-n {pod} link add eth0 address 02:11:22:33:44:55 mtu 1400 type veth peer name up0 netns {peer}"
        ));
        ip(&format!("-n {pod} link set lo up"));
        ip(&format!("-n {pod} link set eth0 up"));
        ip(&format!("-n {peer} link set up0 up"));
        ip(&format!("-n {peer} addr add 10.9.0.1/24 dev up0"));
        ip(&format!("-n {pod} addr add 10.9.0.2/24 dev eth0"));
        ip(&format!("-n {pod} addr add fd09::2/64 dev eth0 nodad"));
        Some(pair)
    }

    fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.pod)
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        for name in [&self.pod, &self.peer] {
            let _ = Command::new("ip").args(["netns", "del", name]).status();
        }
    }
}

#[tokio::test]
async fn the_guest_gets_what_the_cni_configured() {
    let Some(pair) = Pair::new("cfg") else { return };
    let pod = &pair.pod;
    ip(&format!("-n {pod} link add eth1 type veth peer name eth2"));
    ip(&format!("-n {pod} link set eth2 up"));
    ip(&format!("-n {pod} link set eth1 up"));
    ip(&format!("-n {pod} addr add 10.8.0.2/24 dev eth1"));
    ip(&format!("-n {pod} route add 10.8.1.0/24 via 10.8.0.1 dev eth1"));
    ip(&format!("-n {pod} route add 169.254.1.1 dev eth0 scope link"));
    let metrics = "mtu lock 1300 advmss 1260 window 9000 rtt 50ms initcwnd 20 congctl reno";
    ip(&format!("-n {pod} route add default via 169.254.1.1 dev eth0 onlink {metrics}"));
    ip(&format!("-n {pod} route add 10.77.0.0/16 via 10.9.0.9 metric 7 src 10.9.0.2"));
    ip(&format!("-n {pod} -6 route add default via fe80::1 dev eth0"));
    ip(&format!("-n {pod} neigh add 169.254.1.1 lladdr ee:ee:ee:ee:ee:ee dev eth0 nud permanent"));

    let attachment = attach(&pair.path(), 1).await.unwrap();
    let guest = &attachment.guest;
    assert_eq!((guest.mac, guest.mtu), (MAC, 1400));
    let interface = &guest.interfaces[0];
    assert_eq!((interface.name.as_str(), interface.mtu), ("eth0", 1400));
    assert_eq!(interface.addresses, ["10.9.0.2/24", "fd09::2/64"]);

    let text: Vec<_> = guest
        .routes
        .iter()
        .map(|r| {
            format!(
                "{}|{}|{}|{}|{}|{}|{}",
                r.destination, r.gateway, r.source, r.scope, r.family, r.priority, r.onlink
            )
        })
        .collect();
    assert_eq!(text[0], "169.254.1.1/32|||253|4|0|false");
    assert!(text.contains(&"|169.254.1.1||0|4|0|true".to_owned()), "{text:?}");
    assert!(text.contains(&"10.77.0.0/16|10.9.0.9|10.9.0.2|0|4|7|false".to_owned()), "{text:?}");
    assert!(text.contains(&"|fe80::1||0|6|1024|false".to_owned()), "{text:?}");
    assert_eq!(text.len(), 4, "{text:?}");
    let default = guest.routes.iter().find(|route| route.onlink).unwrap();
    let mut metrics: Vec<_> =
        default.metrics.iter().map(|m| (m.kind, m.value, m.congestion_control.as_str())).collect();
    metrics.sort_unstable();
    // linux/rtnetlink.h: RTAX_LOCK (bit 2: the MTU), MTU, WINDOW, RTT (in eighths of a millisecond), ADVMSS, INITCWND,
    // CC_ALGO.
    let expected = [
        (1, 4, ""),
        (2, 1300, ""),
        (3, 9000, ""),
        (4, 400, ""),
        (8, 1260, ""),
        (11, 20, ""),
        (16, 0, "reno"),
    ];
    assert_eq!(metrics, expected);

    assert_eq!(guest.neighbours.len(), 1);
    assert_eq!(guest.neighbours[0].address, "169.254.1.1");
    assert_eq!(guest.neighbours[0].mac.as_ref(), [0xee; 6]);
}

/// Reads frames from a tap queue until one satisfies `wanted`.
fn frame(tap: &mut File, wanted: impl Fn(&[u8]) -> bool) -> Option<Vec<u8>> {
    let until = Instant::now() + Duration::from_secs(3);
    let mut buffer = vec![0; 65536];
    while Instant::now() < until {
        match tap.read(&mut buffer) {
            Ok(count) if wanted(&buffer[12..count]) => return Some(buffer[12..count].to_vec()),
            Ok(_) => {}
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
    None
}

fn send(tap: &mut File, frame: &[u8]) {
    let mut packet = vec![0; 12];
    packet.extend_from_slice(frame);
    tap.write_all(&packet).unwrap();
}

/// An ARP packet inside an Ethernet frame.
fn arp(to: [u8; 6], operation: u8, from_ip: [u8; 4], to_mac: [u8; 6], to_ip: [u8; 4]) -> Vec<u8> {
    let mut frame = Vec::new();
    frame.extend(to);
    frame.extend(MAC);
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, operation]);
    frame.extend(MAC);
    frame.extend(from_ip);
    frame.extend(to_mac);
    frame.extend(to_ip);
    frame
}

#[tokio::test]
async fn frames_pass_both_ways_and_the_namespace_stays_silent() {
    let Some(pair) = Pair::new("io") else { return };
    let mut attachment = attach(&pair.path(), 2).await.unwrap();
    let taps = attachment.take_taps();
    assert_eq!(taps.len(), 2);
    let mut taps: Vec<File> = taps.into_iter().map(File::from).collect();
    // One queue is enough to read all, so that the test needs no poll.
    drop(taps.pop());
    let tap = &mut taps[0];

    // A datagram for the pod: the question who has its address reaches the tap, and only the guest answers it.
    let peer = File::open(Path::new("/run/netns").join(&pair.peer)).unwrap();
    let talking = std::thread::spawn(move || {
        netns::enter(&peer).unwrap();
        let socket = UdpSocket::bind("10.9.0.1:7000").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(4))).unwrap();
        socket.send_to(b"ping", "10.9.0.2:80").unwrap();
        let mut buffer = [0; 16];
        let count = socket.recv(&mut buffer).unwrap();
        buffer[..count].to_vec()
    });
    let question =
        frame(tap, |f| f.get(12..14) == Some(&[8, 6]) && f.get(21) == Some(&1)).expect("ARP question");
    assert_eq!(&question[38..42], &[10, 9, 0, 2]);
    std::thread::sleep(Duration::from_millis(200));
    let known = show(&pair.peer, "ip", "neigh show 10.9.0.2 dev up0");
    assert!(!known.contains("lladdr"), "the namespace itself answered: {known}");
    let asker: [u8; 6] = question[22..28].try_into().unwrap();
    send(tap, &arp(asker, 2, [10, 9, 0, 2], asker, [10, 9, 0, 1]));
    let datagram =
        frame(tap, |f| f.get(12..14) == Some(&[8, 0]) && f.get(23) == Some(&17)).expect("UDP datagram");
    assert_eq!(&datagram[42..46], b"ping");

    // The guest sends it back; swapping the two ends leaves the IP header's checksum right, UDP needs none.
    let mut reply = datagram.clone();
    reply[0..6].copy_from_slice(&datagram[6..12]);
    reply[6..12].copy_from_slice(&MAC);
    reply[26..30].copy_from_slice(&datagram[30..34]);
    reply[30..34].copy_from_slice(&datagram[26..30]);
    reply[34..36].copy_from_slice(&datagram[36..38]);
    reply[36..38].copy_from_slice(&datagram[34..36]);
    reply[40..42].copy_from_slice(&[0, 0]);
    send(tap, &reply);
    assert_eq!(talking.join().unwrap(), b"ping");

    // A TCP connection to the pod's address is not reset by the namespace's own stack.
    let peer = File::open(Path::new("/run/netns").join(&pair.peer)).unwrap();
    let connecting = std::thread::spawn(move || {
        netns::enter(&peer).unwrap();
        std::net::TcpStream::connect_timeout(&"10.9.0.2:81".parse().unwrap(), Duration::from_millis(700))
    });
    frame(tap, |f| f.get(23) == Some(&6)).expect("TCP SYN");
    let error = connecting.join().unwrap().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
}

#[tokio::test]
async fn detaching_leaves_the_namespace_as_it_was_and_may_be_repeated() {
    let Some(pair) = Pair::new("del") else { return };
    let mut attachment = attach(&pair.path(), 4).await.unwrap();
    let kept: Vec<OwnedFd> = attachment.take_taps();
    assert!(show(&pair.pod, "ip", "link").contains(TAP_NAME));
    assert!(show(&pair.pod, "tc", "qdisc show dev eth0").contains("ingress"));
    // A second attach takes the place of what a dead shim left.
    let again = attach(&pair.path(), 1).await.unwrap();
    drop(again);
    detach(&pair.path()).await.unwrap();
    drop(kept);
    detach(&pair.path()).await.unwrap();
    assert!(!show(&pair.pod, "ip", "link").contains(TAP_NAME));
    assert_eq!(show(&pair.pod, "tc", "filter show dev eth0 ingress").trim(), "");
    assert!(!show(&pair.pod, "tc", "qdisc show dev eth0").contains("ingress"));
    assert!(show(&pair.pod, "ip", "addr show eth0").contains("10.9.0.2/24"));
}

#[tokio::test]
async fn the_filters_of_others_survive() {
    let Some(pair) = Pair::new("foreign") else { return };
    show(&pair.pod, "tc", "qdisc add dev eth0 clsact");
    show(&pair.pod, "tc", "filter add dev eth0 ingress prio 9 protocol ip u32 match u8 0 0 classid 1:1");
    let _attachment = attach(&pair.path(), 1).await.unwrap();
    assert!(show(&pair.pod, "tc", "filter show dev eth0 ingress").contains(TAP_NAME));
    detach(&pair.path()).await.unwrap();
    let left = show(&pair.pod, "tc", "filter show dev eth0 ingress");
    assert!(left.contains("pref 9") && !left.contains("mirred"), "{left}");
}

#[tokio::test]
async fn a_namespace_that_is_gone_is_named() {
    let path = Path::new("/run/netns/ravelin-no-such-namespace");
    let error = attach(path, 1).await.unwrap_err();
    assert!(matches!(error, NetworkError::Gone { .. }));
    assert!(error.to_string().contains("ravelin-no-such-namespace"));
    detach(path).await.unwrap();
}

#[tokio::test]
async fn a_file_that_is_no_namespace_is_named() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let error = attach(file.path(), 1).await.unwrap_err();
    assert!(matches!(error, NetworkError::NotANamespace { .. }), "{error}");
}

#[tokio::test]
async fn a_namespace_without_an_interface_is_refused() {
    let Some(pair) = Pair::new("none") else { return };
    ip(&format!("-n {} link del eth0", pair.pod));
    assert!(matches!(attach(&pair.path(), 1).await, Err(NetworkError::NoInterface)));
    assert!(!show(&pair.pod, "ip", "link").contains(TAP_NAME));
}

#[test]
fn the_link_local_address_of_the_mac_is_left_to_the_guest() {
    assert_eq!(guest::link_local(MAC), "fe80::11:22ff:fe33:4455".parse::<Ipv6Addr>().unwrap());
    let message = |ip: Ipv6Addr| {
        let mut message = AddressMessage::default();
        message.header.index = 2;
        message.header.prefix_len = 64;
        message.attributes.push(AddressAttribute::Address(ip.into()));
        message
    };
    let messages = [message(guest::link_local(MAC)), message("fe80::5".parse().unwrap())];
    assert_eq!(guest::guest_addresses(&messages, 2, MAC), ["fe80::5/64"]);
    assert!(guest::guest_addresses(&messages, 3, MAC).is_empty());
}

#[test]
fn routes_that_the_kernel_makes_or_other_tables_hold_are_left_out() {
    let route = |protocol, kind, table| {
        let mut message = RouteMessage::default();
        message.header.protocol = protocol;
        message.header.kind = kind;
        message.header.table = table;
        message.header.destination_prefix_length = 8;
        message.attributes.push(RouteAttribute::Destination(RouteAddress::Inet(Ipv4Addr::new(10, 0, 0, 0))));
        message.attributes.push(RouteAttribute::Oif(2));
        message
    };
    let messages = [
        route(RouteProtocol::Kernel, RouteType::Unicast, 254),
        route(RouteProtocol::Static, RouteType::BlackHole, 254),
        route(RouteProtocol::Static, RouteType::Unicast, 255),
        route(RouteProtocol::Static, RouteType::Unicast, 254),
    ];
    assert_eq!(guest::guest_routes(&messages, 2, "eth0").len(), 1);
    assert!(guest::guest_routes(&messages, 3, "eth0").is_empty());
}

#[tokio::test]
async fn a_connection_to_any_port_of_the_namespaces_loopback_is_taken_with_the_port_that_was_meant() {
    let Some(pair) = Pair::new("fwd") else { return };
    let mut attachment = attach(&pair.path(), 1).await.unwrap();
    let loopback = attachment.loopback.take().unwrap();
    let serving = tokio::spawn(loopback.serve(|mut stream, port| async move {
        tokio::io::AsyncWriteExt::write_all(&mut stream, &port.to_be_bytes()).await.unwrap();
    }));
    for port in [1_u16, 80, 65535] {
        let namespace = File::open(pair.path()).unwrap();
        let said = std::thread::spawn(move || {
            netns::enter(&namespace).unwrap();
            let mut stream = std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
            let mut said = Vec::new();
            stream.read_to_end(&mut said).unwrap();
            said
        });
        let said = tokio::task::spawn_blocking(|| said.join().unwrap()).await.unwrap();
        assert_eq!(said, port.to_be_bytes());
    }
    // With it goes the listener of all ports.
    serving.abort();
    assert!(serving.await.unwrap_err().is_cancelled());
    let namespace = File::open(pair.path()).unwrap();
    let refused = std::thread::spawn(move || {
        netns::enter(&namespace).unwrap();
        std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, 80)).unwrap_err().kind()
    });
    let refused = tokio::task::spawn_blocking(|| refused.join().unwrap()).await.unwrap();
    assert_eq!(refused, std::io::ErrorKind::ConnectionRefused);
    detach(&pair.path()).await.unwrap();
}
