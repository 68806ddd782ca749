//! Containers with every right in their guest (mode `guest`: privileged, with the guest's processes), who use them against
//! the machine and the node. Below them is the guest's kernel, which they may end; the machine does what it was asked, the
//! pod beside them works on, and their own pod can be removed.

use std::fs;
use std::time::Duration;

use ravelin_tests::{Container, Host, Pod, PodSpec, Run, eventually, images};
use serde_json::json;

use crate::failures::time;
use crate::start_failures::Away;

const CONFIG: &str = "/etc/ravelin/ravelin.toml";
/// How long containerd may take to be told of a pod.
const LIMIT: Duration = Duration::from_secs(15);

/// What is tried in one guest, one after the other, and a word of what it has to come to.
const DEEDS: [(&str, &str, &str); 6] = [
    // (CVE-2020-2023) The disks' own nodes: neither another layer's content nor its own.
    (
        "the disks",
        "for disk in vda vdb vdc; do
            mknod /tmp/$disk b $(tr : ' ' < /sys/class/block/$disk/dev)
            dd if=/dev/zero of=/tmp/$disk bs=4096 count=1 conv=notrunc,fsync 2>&1 && echo WRITTEN
            dd if=/tmp/$disk of=/dev/null bs=4096 count=1 2>&1 && echo READ
        done; echo done",
        "not permitted",
    ),
    // Physical memory and ports, through which a driver of one's own would reach the devices.
    (
        "physical memory",
        "mknod /tmp/mem c 1 1; mknod /tmp/port c 1 4
        dd if=/tmp/mem of=/dev/null bs=4096 count=1 2>&1 && echo READ
        dd if=/tmp/port of=/dev/null bs=1 count=1 2>&1 && echo READ; echo done",
        "done",
    ),
    // (CVE-2020-2025, -2026) The host and the agent by their sockets: the host listens to nobody.
    (
        "sockets to the host",
        "python3 - << 'END'
import socket
for cid in [2, 3, 0, 2**32 - 1]:
    for port in [1, 1024, 1025, 2**32 - 2] if cid == 2 else [1024]:
        with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as one:
            one.settimeout(2)
            try:
                one.connect((cid, port))
                print('CONNECTED', cid, port)
            except OSError as error:
                print(cid, port, error)
END
        echo done",
        "done",
    ),
    // Devices that are taken from their drivers, and given back, in the middle of what they do.
    (
        "drivers",
        "for turn in 1 2 3 4 5; do for driver in virtio_rng virtio_balloon; do
            for device in $(cd /sys/bus/virtio/drivers/$driver 2>/dev/null && ls -d virtio*); do
                head -c 100000 /dev/hwrng > /dev/null 2>&1 &
                echo $device > /sys/bus/virtio/drivers/$driver/unbind && echo $device > /sys/bus/virtio/drivers/$driver/bind
            done
        done; done; wait; echo done",
        "done",
    ),
    // (CVE-2020-16843) More frames than anybody reads.
    (
        "frames",
        "python3 - << 'END'
import socket, time
until = time.monotonic() + 5
flood = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
flood.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
gateway = next(line.split()[2] for line in open('/proc/net/route') if line.split()[1] == '00000000')
gateway = '.'.join(str(byte) for byte in reversed(bytes.fromhex(gateway)))
sent = 0
while time.monotonic() < until:
    try:
        flood.sendto(bytes(1400), (gateway, 9))
        sent += 1
    except OSError:
        pass
print(sent > 100)
END
        echo done",
        "True",
    ),
    // Every process of the guest but the first, the agent's own among them.
    ("every process", "trap '' TERM; kill -KILL -1; echo done", ""),
];

/// What its kernel does not survive, or may not.
const ENDS: [(&str, &str); 3] = [
    ("a panic", "echo 2 > /proc/sys/vm/panic_on_oom; tail /dev/zero"),
    ("a reboot", "reboot -f"),
    (
        "no memory",
        "mount -o remount,size=100% /dev/shm; echo -1000 > /proc/self/oom_score_adj; dd if=/dev/zero of=/dev/shm/all bs=1M",
    ),
];

#[test]
fn who_has_every_right_in_a_guest_harms_it_alone() {
    let Some(host) = Host::alone_with_ravelin() else { return };
    let neighbour = host.pod().start();
    let working = neighbour.container().idle().start();
    let pod = privileged(&host);
    let traces = pod.traces();
    let container = root(&pod, images::DEBIAN);
    let (deeds, ends) = if Host::whole() { (DEEDS.len(), ENDS.len()) } else { (3, 1) };
    for (name, script, word) in DEEDS.into_iter().take(deeds) {
        println!("{name}");
        let said = Run::crictl()
            .args(["exec", "--sync", "--timeout", "240", &container.id, "sh", "-c", script])
            .run();
        println!("{}", said.text());
        let text = said.text();
        for wrong in ["WRITTEN", "READ", "CONNECTED"] {
            assert!(!text.contains(wrong), "{name}: {text}");
        }
        assert!(text.contains(word), "{name}: {text}");
        let took = time(|| {
            assert_eq!(Run::crictl().args(["inspectp", &pod.id]).run().code, 0, "{name}");
            let _ = Run::crictl().args(["stats", "--id", &container.id]).run();
        });
        assert!(took < LIMIT, "{name}: to look at the pod took {took:?}");
        assert_eq!(working.exec_sh("echo alive"), "alive", "{name}");
    }
    pod.remove();
    traces.assert_gone();

    for (name, script) in ENDS.into_iter().take(ends) {
        println!("{name}");
        let pod = privileged(&host);
        let traces = pod.traces();
        let container = root(&pod, images::BUSYBOX);
        let _ = Run::crictl()
            .args(["exec", "--sync", "--timeout", "120", &container.id, "sh", "-c", script])
            .run();
        if name == "a panic" {
            eventually("the pod is seen to have ended", || (pod.state() == "SANDBOX_NOTREADY").then_some(()));
        }
        assert_eq!(working.exec_sh("echo alive"), "alive", "{name}");
        pod.remove();
        traces.assert_gone();
    }
    working.remove();
    neighbour.remove();
    host.assert_clean();
}

fn privileged(host: &Host) -> Pod<'_> {
    let away = Away::take(CONFIG);
    fs::write(CONFIG, "[policy]\nmode = \"guest\"\n").unwrap();
    let spec: PodSpec<'_> = host.pod().set("/linux/security_context/privileged", true);
    let pod = spec.set("/linux/security_context/namespace_options/pid", 2).start();
    drop(away);
    pod
}

fn root<'p>(pod: &'p Pod<'_>, image: &str) -> Container<'p> {
    let root = pod.container().image(image).security("privileged", true);
    root.security("namespace_options", json!({ "network": 0, "pid": 2, "ipc": 0 })).idle().start()
}
