//! Pods through containerd's sandbox API: no pause container, and what containerd makes for one is the shim's to make.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use containerd_shim_protos::Client;
use containerd_shim_protos::sandbox_api::{
    PingRequest, PlatformRequest, SandboxMetricsRequest, SandboxStatusRequest, ShutdownSandboxRequest,
    StopSandboxRequest, WaitSandboxRequest,
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

    // One client for all calls. An answer that comes while ttrpc's is dropped, as that of a wait that was given up may, has it read
    // on from its descriptor's number, which by then is the next client's.
    let client = client(&pod);
    the_shim_answers_what_containerd_does_not_ask(&pod, &client);
    one_that_does_not_stop_in_the_time_it_is_given_is_killed(&pod, &client);
    eventually("the pod is seen to be dead", || (pod.state() == "SANDBOX_NOTREADY").then_some(()));
    pod.stop();
    assert_eq!(pod.state(), "SANDBOX_NOTREADY");
    pod.remove();
    host.assert_clean();
}

/// The pod's shim, spoken to as containerd speaks to it.
#[track_caller]
fn client(pod: &Pod<'_>) -> SandboxClient {
    let file = "/run/containerd/io.containerd.sandbox.controller.v1.shim/k8s.io";
    let bootstrap = fs::read_to_string(format!("{file}/{}/bootstrap.json", pod.id)).unwrap();
    let bootstrap: Value = serde_json::from_str(&bootstrap).unwrap();
    SandboxClient::new(Client::connect(bootstrap["address"].as_str().unwrap()).unwrap())
}

fn context() -> Context {
    with_duration(ravelin_tests::PATIENCE)
}

/// The code of what must not succeed.
#[track_caller]
fn code<T: std::fmt::Debug>(result: ttrpc::Result<T>) -> ttrpc::Code {
    match result {
        Err(ttrpc::Error::RpcStatus(status)) => status.code(),
        other => panic!("it was not refused: {other:?}"),
    }
}

/// The API's calls, straight to the shim.
#[track_caller]
fn the_shim_answers_what_containerd_does_not_ask(pod: &Pod<'_>, sandbox: &SandboxClient) {
    let mut ping = PingRequest::new();
    ping.sandbox_id.clone_from(&pod.id);
    sandbox.ping_sandbox(context(), &ping).unwrap();
    ping.sandbox_id = "another".to_owned();
    assert_eq!(code(sandbox.ping_sandbox(context(), &ping)), ttrpc::Code::NOT_FOUND);
    let mut shutdown = ShutdownSandboxRequest::new();
    shutdown.sandbox_id = "another".to_owned();
    assert_eq!(code(sandbox.shutdown_sandbox(context(), &shutdown)), ttrpc::Code::NOT_FOUND);

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

#[track_caller]
fn one_that_does_not_stop_in_the_time_it_is_given_is_killed(pod: &Pod<'_>, sandbox: &SandboxClient) {
    let mut wait = WaitSandboxRequest::new();
    wait.sandbox_id.clone_from(&pod.id);
    let waiting = std::thread::spawn({
        let sandbox = sandbox.clone();
        move || sandbox.wait_sandbox(context(), &wait)
    });
    let machine = pod.process("ravelin-vmm").expect("a machine serves the pod").to_string();
    Run::new("kill").args(["-STOP", &machine]).ok();
    let mut stop = StopSandboxRequest::new();
    stop.sandbox_id.clone_from(&pod.id);
    stop.timeout_secs = 1;
    sandbox.stop_sandbox(context(), &stop).expect("StopSandbox is answered");
    let ended = waiting.join().unwrap().expect("WaitSandbox is answered");
    assert_eq!(ended.exit_status, 137);
    assert!(ended.exited_at.seconds > 0, "{ended:?}");

    let mut status = SandboxStatusRequest::new();
    status.sandbox_id.clone_from(&pod.id);
    let status = sandbox.sandbox_status(context(), &status).expect("SandboxStatus is answered");
    assert_eq!((status.state.as_str(), status.pid), ("SANDBOX_NOTREADY", 0));
    assert_eq!(status.exited_at, ended.exited_at);
    let mut ping = PingRequest::new();
    ping.sandbox_id.clone_from(&pod.id);
    assert_eq!(code(sandbox.ping_sandbox(context(), &ping)), ttrpc::Code::FAILED_PRECONDITION);
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

    // One that names no cgroup to be in, as pods of other clients than the kubelet do.
    let cgroups = || {
        let all = fs::read_dir("/sys/fs/cgroup").unwrap().flatten();
        all.filter(|entry| entry.path().is_dir()).map(|entry| entry.file_name()).collect::<BTreeSet<_>>()
    };
    let before = cgroups();
    let pod = host.pod().with_handler(Handler::RavelinSandbox).set("/linux/cgroup_parent", "").start();
    let container = pod.container().idle().start();
    let shim = pod.process("containerd-shim-ravelin-v2").expect("a shim serves the pod").to_string();
    Run::new("kill").args(["-KILL", &shim]).ok();
    eventually("the pod is seen to be dead", || (pod.state() == "SANDBOX_NOTREADY").then_some(()));
    // containerd hears of it on another way, and removes nothing that it takes for running.
    eventually("its container is seen to be dead", || {
        (container.state() == "CONTAINER_EXITED").then_some(())
    });
    pod.remove();
    eventually("its cgroup is gone", || (cgroups() == before).then_some(()));
    host.assert_clean();
}
