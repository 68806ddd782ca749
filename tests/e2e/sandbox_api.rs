//! Pods through containerd's sandbox API: no pause container, and what containerd makes for one is the shim's to make.

use std::fs;
use std::time::Duration;

use containerd_shim_protos::Client;
use containerd_shim_protos::sandbox_api::{
    PingRequest, PlatformRequest, SandboxMetricsRequest, SandboxStatusRequest, WaitSandboxRequest,
};
use containerd_shim_protos::sandbox_sync::SandboxClient;
use ravelin_tests::{Containerd, Handler, Host, Pod, Run, eventually};
use serde_json::{Value, json};
use ttrpc::context::{Context, with_duration};

use crate::assert_says;

/// The host, if its containerd has the API and Ravelin is under test.
fn alone() -> Option<Host> {
    if Host::containerd() == Containerd::V1_6 {
        println!("left out: containerd 1.6 has no sandbox API");
        return None;
    }
    Host::alone_with_ravelin()
}

#[test]
fn a_pod_without_a_pause_container_has_what_others_have() {
    let Some(host) = alone() else { return };
    let dns = json!({ "servers": ["10.88.0.53"], "searches": ["e2e.local"], "options": ["ndots:5"] });
    let spec = host.pod().with_handler(Handler::RavelinSandbox).sized(1000, 512);
    let pod = spec.set("/dns_config", dns).set("/hostname", "finder").start();
    assert_eq!(pod.state(), "SANDBOX_READY");
    let status = pod.inspect()["status"].clone();
    assert!(status["createdAt"].as_str().is_some_and(|at| at.starts_with("20")), "{status}");

    let one = pod.container().idle().start();
    let read_only = pod.container().set("/linux/security_context/readonly_rootfs", true).idle().start();
    for container in [&one, &read_only] {
        assert_eq!(
            container.exec_sh("cat /etc/resolv.conf /etc/hostname; hostname"),
            "search e2e.local\nnameserver 10.88.0.53\noptions ndots:5\nfinder\nfinder"
        );
        assert!(container.exec_sh("cat /etc/hosts").contains("127.0.0.1"));
    }
    assert_eq!(one.exec_sh("echo 1.2.3.4 x >> /etc/hosts && tail -n 1 /etc/hosts"), "1.2.3.4 x");
    assert_says(&read_only.exec_sh("echo x >> /etc/hosts || echo refused"), "refused");
    one.exec_sh("echo shared > /dev/shm/word");
    assert_eq!(read_only.exec_sh("cat /dev/shm/word; stat -f -c %T /dev/shm"), "shared\ntmpfs");

    // A pod that is refused is refused in the same words, and leaves nothing.
    let refused =
        host.pod().with_handler(Handler::RavelinSandbox).set("/linux/security_context/privileged", true);
    let words = refused.try_start().expect_err("a privileged pod is refused");
    assert_says(&words, "Pod not supported on Fargate: invalid SecurityContext fields: Privileged");

    the_shim_answers_what_containerd_does_not_ask(&pod);
    pod.stop();
    assert_eq!(pod.state(), "SANDBOX_NOTREADY");
    pod.remove();
    host.assert_clean();
}

/// The API's calls, straight to the shim.
#[track_caller]
fn the_shim_answers_what_containerd_does_not_ask(pod: &Pod<'_>) {
    let file = "/run/containerd/io.containerd.sandbox.controller.v1.shim/k8s.io";
    let bootstrap = fs::read_to_string(format!("{file}/{}/bootstrap.json", pod.id)).unwrap();
    let bootstrap: Value = serde_json::from_str(&bootstrap).unwrap();
    let sandbox = SandboxClient::new(Client::connect(bootstrap["address"].as_str().unwrap()).unwrap());
    let context = || -> Context { with_duration(Duration::from_secs(120)) };

    let mut ping = PingRequest::new();
    ping.sandbox_id.clone_from(&pod.id);
    sandbox.ping_sandbox(context(), &ping).unwrap();
    ping.sandbox_id = "another".to_owned();
    let ttrpc::Error::RpcStatus(status) = sandbox.ping_sandbox(context(), &ping).unwrap_err() else {
        panic!("no status")
    };
    assert_eq!(status.code(), ttrpc::Code::NOT_FOUND);

    let mut platform = PlatformRequest::new();
    platform.sandbox_id.clone_from(&pod.id);
    let platform = sandbox.platform(context(), &platform).unwrap().platform;
    assert_eq!((platform.os.as_str(), platform.architecture.as_str()), ("linux", "amd64"));

    let mut status = SandboxStatusRequest::new();
    status.sandbox_id.clone_from(&pod.id);
    status.verbose = true;
    let status = sandbox.sandbox_status(context(), &status).unwrap();
    let machine = pod.process("ravelin-vmm").expect("a machine serves the pod");
    assert_eq!((status.state.as_str(), status.pid), ("SANDBOX_READY", machine));
    let info: Value = serde_json::from_str(&status.info["info"]).unwrap();
    assert_eq!(info["processStatus"], "running");

    let mut metrics = SandboxMetricsRequest::new();
    metrics.sandbox_id.clone_from(&pod.id);
    let metrics = sandbox.sandbox_metrics(context(), &metrics).unwrap().metrics;
    assert_eq!(
        (metrics.id.as_str(), metrics.data.type_url.as_str()),
        (pod.id.as_str(), "io.containerd.cgroups.v2.Metrics")
    );
    assert!(!metrics.data.value.is_empty());

    // Who waits is told of nothing while the pod lives.
    let mut wait = WaitSandboxRequest::new();
    wait.sandbox_id.clone_from(&pod.id);
    assert!(sandbox.wait_sandbox(with_duration(Duration::from_secs(2)), &wait).is_err());
}

#[test]
fn a_pod_of_the_sandbox_api_outlives_containerd_and_its_death_is_seen() {
    let Some(host) = alone() else { return };
    let pod = host.pod().with_handler(Handler::RavelinSandbox).start();
    let container = pod.container().idle().start();
    for signal in ["TERM", "KILL"] {
        host.stop_containerd(signal);
        host.start_containerd();
        assert_eq!(pod.state(), "SANDBOX_READY", "after SIG{signal}");
        assert_eq!(container.exec_sh("echo alive"), "alive");
    }
    let another = pod.sh("echo a new one");
    assert_eq!(another.output(), "a new one\n");

    let machine = pod.process("ravelin-vmm").expect("a machine serves the pod").to_string();
    Run::new("kill").args(["-KILL", &machine]).ok();
    eventually("the pod is seen to be dead", || (pod.state() == "SANDBOX_NOTREADY").then_some(()));
    eventually("its container is seen to be dead", || {
        (container.state() == "CONTAINER_EXITED").then_some(())
    });
    pod.remove();

    let pod = host.pod().with_handler(Handler::RavelinSandbox).start();
    let _container = pod.container().idle().start();
    let shim = pod.process("containerd-shim-ravelin-v2").expect("a shim serves the pod").to_string();
    Run::new("kill").args(["-KILL", &shim]).ok();
    eventually("the pod is seen to be dead", || (pod.state() == "SANDBOX_NOTREADY").then_some(()));
    pod.remove();
    host.assert_clean();
}
