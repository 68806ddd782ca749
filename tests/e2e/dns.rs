//! The files by which a pod finds names.

use ravelin_tests::Host;
use serde_json::json;

#[test]
fn resolver_hosts_and_hostname_files_say_what_the_pod_asked_for() {
    let host = Host::shared();
    let dns = json!({
        "servers": ["10.88.0.53", "fd00:88::53"],
        "searches": ["e2e.svc.cluster.local", "svc.cluster.local"],
        "options": ["ndots:5"],
    });
    let pod = host.pod().set("/dns_config", dns).set("/hostname", "finder").start();
    let container = pod.container().idle().start();
    assert_eq!(
        container.exec_sh("cat /etc/resolv.conf"),
        "search e2e.svc.cluster.local svc.cluster.local\nnameserver 10.88.0.53\nnameserver fd00:88::53\noptions ndots:5"
    );
    assert_eq!(container.exec_sh("cat /etc/hostname; hostname"), "finder\nfinder");
    assert!(container.exec_sh("cat /etc/hosts").contains("127.0.0.1"), "containerd copies the host's file");
}
