//! What the containers of a pod share and what they do not.

use ravelin_tests::Host;
use serde_json::json;

use crate::report;

const NAMESPACES: &str =
    "for name in net ipc uts pid mnt; do echo $name=$(readlink /proc/self/ns/$name); done";

#[test]
fn containers_share_network_ipc_and_shared_memory_but_not_processes() {
    let host = Host::shared();
    let pod = host.common_pod();
    let first = pod.container();
    let first = first.sh("echo from the first > /dev/shm/file; echo ready; while :; do nc -l -p 7777 -e echo hello over loopback; done").start();
    first.says("ready");
    let second = pod.container().idle().start();
    let seen = report(&second.exec_sh(NAMESPACES));
    let other = report(&first.exec_sh(NAMESPACES));
    for (name, shared) in [("net", true), ("ipc", true), ("uts", true), ("pid", false), ("mnt", false)] {
        assert_eq!(seen[name] == other[name], shared, "namespace {name}");
    }
    assert_eq!(second.exec_sh("cat /dev/shm/file"), "from the first");
    assert_eq!(
        second.exec_sh("echo from the second > /dev/shm/answer; df -k /dev/shm | awk 'NR > 1 { print $2 }'"),
        "65536"
    );
    assert_eq!(first.exec_sh("cat /dev/shm/answer"), "from the second");
    let heard = ravelin_tests::until(ravelin_tests::PATIENCE, || {
        let done = second.exec(&["sh", "-c", "nc -w 20 127.0.0.1 7777 < /dev/null"]);
        (done.text() == "hello over loopback").then_some(())
    });
    assert!(heard.is_some(), "the first container's server is not heard in the second");
    let processes = second.exec_sh("ps -o pid,args");
    assert!(!processes.contains("7777") && processes.contains("1 /bin/sh -c trap"), "{processes}");
}

#[test]
fn containers_of_a_pod_with_shared_pids_see_and_signal_each_other() {
    let host = Host::shared();
    let pod = host.pod().with_shared_pids().start();
    let first =
        pod.sh("trap 'echo told to end; exit 5' USR1; echo ready; while :; do sleep 1111 & wait; done");
    first.says("ready");
    let second = pod.container().idle().start();
    assert_eq!(report(&second.exec_sh(NAMESPACES))["pid"], report(&first.exec_sh(NAMESPACES))["pid"]);
    let processes = second.exec_sh("ps -o pid,args");
    assert!(processes.contains("sleep 1111"), "{processes}");
    // The first process is nobody's program: it outlives them all, and reaps.
    assert!(!second.exec_sh("cat /proc/1/cmdline").contains("trap"), "{processes}");
    second.exec_sh("kill -USR1 $(ps -o pid,args | awk '/told to end/ && !/awk/ { print $1; exit }')");
    assert_eq!(first.ended().code, 5);
    assert_eq!(first.logs().out(), "ready\ntold to end\n");
    // What the first left running went with it.
    let processes = second.exec_sh("ps -o pid,args");
    assert!(!processes.contains("sleep 1111"), "{processes}");
    assert_eq!(second.exec_sh("sh -c 'sleep 0.1 &'; sleep 1; ps -o stat | grep -c Z || true"), "0");
}

#[test]
fn a_debugging_container_joins_the_processes_of_its_target() {
    let host = Host::shared();
    let pod = host.common_pod();
    let target = pod.container().idle().start();
    let options = json!({ "network": 0, "pid": 3, "ipc": 0, "target_id": target.id });
    let debugger = pod.container().idle().security("namespace_options", options).start();
    assert_eq!(report(&debugger.exec_sh(NAMESPACES))["pid"], report(&target.exec_sh(NAMESPACES))["pid"]);
    let processes = debugger.exec_sh("ps -o pid,args");
    assert_eq!(processes.matches("trap 'exit 0' TERM").count(), 2, "{processes}");
}
