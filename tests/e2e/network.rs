//! Pods reach each other and the host, and are reached, over IPv4 and IPv6.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use ravelin_tests::{Container, Host, PATIENCE, Pod, Run, Session, images, until};

use crate::report;
use crate::start_failures::Away;

/// Echoes TCP streams and UDP datagrams on port 7, for ever.
const ECHO: &str = "
import socket, threading
def stream(connection):
    while data := connection.recv(65536): connection.sendall(data)
    connection.close()
def streams():
    server = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    server.bind(('::', 7)); server.listen(50)
    while True: threading.Thread(target=stream, args=server.accept()[:1]).start()
server = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
server.bind(('::', 7))
threading.Thread(target=streams).start()
print('listening', flush=True)
while True:
    data, sender = server.recvfrom(65536)
    server.sendto(data, sender)
";

/// Sends to an echo server over TCP and UDP, and says whether it came back. Arguments: addresses.
const PROBE: &str = "
import socket, sys, os, threading
for address in sys.argv[1:]:
    kind = socket.AF_INET6 if ':' in address else socket.AF_INET
    data = os.urandom(2 << 20)
    s = socket.create_connection((address, 7), timeout=200)
    sender = threading.Thread(target=lambda: (s.sendall(data), s.shutdown(socket.SHUT_WR)))
    sender.start(); back = b''
    while part := s.recv(65536): back += part
    sender.join(); print('tcp', address, 'same' if back == data else 'different', flush=True)
    u = socket.socket(kind, socket.SOCK_DGRAM); u.settimeout(20)
    for size in (1, 1400, 8000):
        for attempt in range(10):
            try: u.sendto(data[:size], (address, 7)); back = u.recv(65536); break
            except TimeoutError: back = None
        print('udp', size, address, 'same' if back == data[:size] else 'different', flush=True)
";

#[test]
fn host_and_pod_talk_tcp_udp_and_icmp_over_both_families() {
    let host = Host::shared();
    let pod = host.common_pod();
    let server = echo_server(&pod);
    let addresses = pod.addresses();
    assert_eq!(addresses.len(), 2, "the pod has an address of each family: {addresses:?}");
    for &address in &addresses {
        echo_tcp(address, 2 << 20);
        for size in [1, 1400, 8000] {
            echo_udp(address, size);
        }
        ping(address);
    }
    // The other way: the pod calls the host at its gateway.
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let answer = thread::spawn(move || {
        let (mut caller, from) = listener.accept().unwrap();
        caller.write_all(b"hello pod\n").unwrap();
        from.ip()
    });
    let script = format!("nc -w 100 $(ip -4 route | awk '/^default/ {{ print $3 }}') {port} < /dev/null");
    assert_eq!(pod.sh(&script).output(), "hello pod\n");
    assert_eq!(answer.join().unwrap(), addresses[0], "the host sees the pod's own address");
    assert_eq!(server.state(), "CONTAINER_RUNNING");
}

#[test]
fn pods_talk_tcp_udp_and_icmp_to_each_other() {
    let host = Host::shared();
    let (served, caller) = (host.pod().start(), host.pod().start());
    let _server = echo_server(&served);
    let addresses: Vec<String> = served.addresses().iter().map(ToString::to_string).collect();
    let mut command = vec!["python3", "-c", PROBE];
    command.extend(addresses.iter().map(String::as_str));
    let client = caller.container().image(images::DEBIAN).command(&command).start();
    let said = client.output();
    assert_eq!((said.matches("same").count(), said.matches("different").count()), (8, 0), "{said}");
    let pings = caller.sh(&format!("ping -c 3 -W 60 {} && ping -c 3 -W 60 {}", addresses[0], addresses[1]));
    assert_eq!(pings.output().matches("3 packets received").count(), 2);
    // And a page, as in every introduction.
    let _web = served.sh("httpd -f -p 8080 -h /var/www");
    let address = &addresses[0];
    let script = format!("until curl -sf -m 60 http://{address}:8080/; do sleep 1; done");
    let fetch = caller.container().image(images::DEBIAN).command(&["bash", "-c", &script]).start();
    assert_eq!(fetch.output(), "hello from a pod\n");
}

#[test]
fn the_pods_interface_is_the_one_that_the_network_plugin_made() {
    let host = Host::shared();
    let pod = host.pod().start();
    let container = pod.container().idle().start();
    let said = report(&container.exec_sh(
        "echo mac=$(cat /sys/class/net/eth0/address); echo mtu=$(cat /sys/class/net/eth0/mtu); echo up=$(cat /sys/class/net/eth0/operstate)
         echo addresses=$(ip -o addr show dev eth0 scope global | awk '{ print $4 }' | sort)
         echo default4=$(ip -4 route | awk '/^default/ { print $3 }'); echo default6=$(ip -6 route | awk '/^default/ { print $3 }')
         echo loopback=$(ip -o addr show dev lo | awk '{ print $4 }' | sort); echo interfaces=$(ls /sys/class/net)",
    ));
    let net = format!("--net={}", pod.netns().display());
    let link = Run::new("nsenter").args([&net, "ip", "-j", "link", "show", "eth0"]).json();
    assert_eq!(said["mac"], link[0]["address"].as_str().unwrap());
    assert_eq!(said["mtu"], link[0]["mtu"].to_string());
    let addresses =
        Run::new("nsenter").args([&net, "ip", "-o", "addr", "show", "eth0", "scope", "global"]).ok();
    let mut plugin: Vec<&str> = addresses.lines().filter_map(|line| line.split_whitespace().nth(3)).collect();
    plugin.sort();
    assert_eq!(said["addresses"], plugin.join(" "));
    assert_eq!(said["default4"], "10.88.0.1");
    assert_eq!(said["default6"], "fd00:88::1");
    assert_eq!(said["loopback"], "127.0.0.1/8 ::1/128");
    // cAdvisor and `nsenter` find a pod's network by the process that CRI names.
    let pid = pod.inspect()["info"]["pid"].as_u64().expect("the sandbox has a process");
    let counted = fs::read_to_string(format!("/proc/{pid}/net/dev")).expect("the process is there");
    let packets = counted.lines().find_map(|line| line.trim().strip_prefix("eth0:"));
    let packets = packets.unwrap_or_else(|| panic!("no eth0 in {counted}"));
    let received = packets.split_whitespace().nth(1).and_then(|count| count.parse::<u64>().ok());
    assert!(received.is_some_and(|count| count > 0), "{counted}");
}

/// Greets whoever comes, and says again what it hears.
const GREETER: &str = "
import socket, threading
def serve(peer):
    peer.sendall(b'hello\\n')
    while said := peer.recv(4096):
        peer.sendall(said)
server = socket.create_server(('127.0.0.1', 8080), backlog=1024)
print('ready', flush=True)
while True:
    threading.Thread(target=serve, args=[server.accept()[0]], daemon=True).start()";

#[test]
fn forwarded_connections_reach_a_server_on_the_pods_loopback_many_at_a_time() {
    let count = if Host::whole() { 260 } else { 8 };
    let host = Host::shared();
    let pod = host.pod().start();
    let server = pod.container().image(images::DEBIAN).command(&["python3", "-c", GREETER]).start();
    // A client that finds nobody listening gives up all of its connections.
    server.says("ready\n");
    let forward = Session::pipes(&Run::crictl().args(["port-forward", &pod.id, "0:8080"]));
    // "Forwarding from 127.0.0.1:43210 -> 8080"
    forward.hear(" -> 8080");
    let said = forward.heard();
    let port = said.split("127.0.0.1:").nth(1).and_then(|rest| rest.split(' ').next());
    let port: u16 = port.and_then(|port| port.parse().ok()).unwrap_or_else(|| panic!("no port in {said}"));
    let line = |stream: &mut TcpStream| {
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).ok().map(|_| line)
    };
    let connect = || {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        (line(&mut stream)? == "hello\n").then_some(stream)
    };
    let mut all = Vec::new();
    for number in 0..count {
        all.push(connect().unwrap_or_else(|| panic!("connection {number}: {}", forward.heard())));
    }
    for stream in [0, count / 2, count - 1].map(|number| all[number].try_clone().expect("a descriptor")) {
        let mut stream = stream;
        stream.write_all(b"still there\n").expect("the connection is open");
        assert_eq!(line(&mut stream).as_deref(), Some("still there\n"));
    }
    // They take nothing from what else goes through the machine.
    assert_eq!(server.exec(&["echo", "alive"]).text(), "alive");
}

#[test]
fn what_the_cni_says_of_a_route_holds_in_the_pod() {
    let host = Host::alone();
    // The last plugin of the chain does its work and then changes the default route, as a network of tunnels does.
    let plugins = ["/opt/cni/bin/portmap", "/usr/lib/cni/portmap"].map(PathBuf::from);
    let _changed: Vec<Away> = plugins
        .iter()
        .filter(|plugin| plugin.exists())
        .map(|plugin| {
            let away = Away::take(plugin.to_str().unwrap());
            let script = format!(
                "#!/bin/sh\n{} \"$@\"; code=$?\n[ \"$CNI_COMMAND\" = ADD ] && nsenter --net=\"$CNI_NETNS\" sh -c 'ip route change $(ip route show default) mtu 1400 advmss 1300' >&2\nexit $code\n",
                away.other.display()
            );
            fs::write(plugin, script).unwrap();
            Run::new("chmod").args(["755", plugin.to_str().unwrap()]).ok();
            away
        })
        .collect();
    let pod = host.pod().start();
    // /proc/net/route shows the advertised segment with its headers; the socket knows the path's MTU (IP_MTU).
    let program = "import socket
routes = [line.split() for line in open('/proc/net/route')]
print([route[8] for route in routes if route[1] == '00000000'][0])
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.connect(('192.0.2.1', 9))
print(s.getsockopt(socket.IPPROTO_IP, 14))";
    let container = pod.container().image(images::DEBIAN).command(&["python3", "-c", program]).start();
    assert_eq!(container.output(), "1340\n1400\n");
    drop(container);
    pod.remove();
}

fn echo_server<'p>(pod: &'p Pod<'p>) -> Container<'p> {
    let server = pod.container().image(images::DEBIAN).command(&["python3", "-c", ECHO]).start();
    server.says("listening");
    server
}

#[track_caller]
fn echo_tcp(address: IpAddr, size: usize) {
    let sent: Vec<u8> = (0..size).map(|at| (at.wrapping_mul(31) >> 3) as u8).collect();
    let mut stream =
        TcpStream::connect_timeout(&SocketAddr::new(address, 7), PATIENCE).expect("the pod accepts");
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut writer = stream.try_clone().unwrap();
    let bytes = sent.clone();
    let sending = thread::spawn(move || {
        writer.write_all(&bytes).expect("the pod reads");
        writer.shutdown(std::net::Shutdown::Write).expect("the stream is open");
    });
    let mut back = Vec::new();
    stream.read_to_end(&mut back).expect("the pod answers");
    sending.join().expect("all was sent");
    assert!(back == sent, "{address}: {} of {size} bytes came back, or others", back.len());
}

#[track_caller]
fn echo_udp(address: IpAddr, size: usize) {
    let any = if address.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" };
    let socket = UdpSocket::bind(any).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let sent: Vec<u8> = (0..size).map(|at| (at.wrapping_mul(37) >> 2) as u8).collect();
    let back = until(PATIENCE, || {
        socket.send_to(&sent, (address, 7)).expect("the host can send");
        let mut back = vec![0; 65536];
        let count = socket.recv(&mut back).ok()?;
        back.truncate(count);
        Some(back)
    });
    assert!(
        back.is_some_and(|back| back == sent),
        "{address}: a datagram of {size} bytes did not come back as it was"
    );
}

#[track_caller]
fn ping(address: IpAddr) {
    let said = Run::new("ping").args(["-c", "3", "-W", "60", &address.to_string()]).ok();
    assert!(said.contains("3 received"), "{said}");
}
