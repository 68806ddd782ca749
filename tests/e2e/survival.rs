//! containerd goes and comes back; the pods do not notice.

use std::time::Duration;

use ravelin_tests::{Finished, Host, Pod, Run, Session, eventually};

#[test]
fn pods_go_on_working_while_containerd_is_restarted() {
    let host = Host::alone();
    let pod = host.pod().start();
    let ticking = pod.sh("i=0; while :; do i=$((i + 1)); echo tick $i; sleep 1; done");
    let serving = pod.sh("while :; do nc -l -p 7777 -e sh -c 'echo still here; ls /dev/shm'; done");
    let ending = pod.sh("nc -l -p 7778 < /dev/null; touch /dev/shm/ended; exit 23");
    let helper = pod.container().idle().start();
    let (created, exited) = (pod.container().idle().create(), pod.sh("exit 5"));
    assert_eq!(exited.ended().code, 5);
    // What has ended stays ended.
    let stopped = host.pod().start();
    let (over, never) = (stopped.container().idle().start(), stopped.container().idle().create());
    stopped.stop();
    ticking.says("tick 3\n");

    for signal in ["TERM", "KILL"] {
        host.stop_containerd(signal);
        assert!(
            fetch(&pod).contains("still here"),
            "the pod does not serve while containerd is away ({signal})"
        );
        host.start_containerd();
        assert_eq!(pod.state(), "SANDBOX_READY", "after SIG{signal}");
        assert_eq!(ticking.state(), "CONTAINER_RUNNING", "after SIG{signal}");
        assert_eq!(created.state(), "CONTAINER_CREATED", "after SIG{signal}");
        assert_eq!(
            (exited.state().as_str(), exited.ended().code),
            ("CONTAINER_EXITED", 5),
            "after SIG{signal}"
        );
        assert_eq!(stopped.state(), "SANDBOX_NOTREADY", "after SIG{signal}");
        assert_eq!(over.state(), "CONTAINER_EXITED", "after SIG{signal}");
        assert_ne!(never.state(), "CONTAINER_RUNNING", "after SIG{signal}");
        assert_eq!(helper.exec_sh("echo alive"), "alive");
        let seen = ticking.logs().out().lines().count();
        ticking.says(&format!("tick {}\n", seen + 3));
    }
    // No line was lost, though containerd was not there to take it.
    for (number, line) in (1..).zip(ticking.logs().out().lines()) {
        assert_eq!(line, format!("tick {number}"));
    }
    // An exit that nobody was there to see is seen afterwards.
    host.stop_containerd("TERM");
    eventually("it ends while containerd is away", || {
        ask(&pod, 7778);
        fetch(&pod).contains("ended").then_some(())
    });
    host.start_containerd();
    let ended = ending.ended();
    assert_eq!(ended.code, 23, "{ended:?}");

    stopped.remove();
    created.start();
    assert_eq!(created.exec_sh("echo alive"), "alive");
    assert_eq!(pod.sh("echo a new one").output(), "a new one\n");
    helper.stop(Duration::from_secs(60));
    assert_eq!(helper.ended().code, 0);
    assert_eq!(serving.state(), "CONTAINER_RUNNING");
    if Host::handler().is_ravelin() {
        containerd_dies_while_a_container_is_made(&host, &pod);
    }
    pod.remove();
}

/// Nothing stays of what nobody waits for any more, and its name is free again.
#[track_caller]
fn containerd_dies_while_a_container_is_made(host: &Host, pod: &Pod<'_>) {
    let machine = pod.process("ravelin-vmm").expect("a machine serves the pod").to_string();
    let orphan = pod.container().idle().create();
    // While the machine stands still nothing can be made in it.
    Run::new("kill").args(["-STOP", &machine]).ok();
    let mut starting = Session::pipes(&Run::crictl().args(["start", &orphan.id]));
    assert!(!starting.ends_within(Duration::from_secs(4)), "made in a machine that stands still");
    host.stop_containerd("KILL");
    starting.kill();
    Run::new("kill").args(["-CONT", &machine]).ok();
    host.start_containerd();
    assert_eq!(pod.sh("echo goes on").output(), "goes on\n");
    orphan.remove();
}

/// What the pod's server says.
#[track_caller]
fn fetch(pod: &Pod<'_>) -> String {
    eventually("the pod answers", || {
        let done = ask(pod, 7777);
        (done.code == 0 && !done.stdout.is_empty()).then(|| done.text())
    })
}

/// Connects to a port of the pod and listens: containerd is not needed for that.
#[track_caller]
fn ask(pod: &Pod<'_>, port: u16) -> Finished {
    let net = format!("--net={}", pod.netns().display());
    let addresses = Run::new("nsenter").args([&net, "ip", "-j", "-4", "addr", "show", "eth0"]).json();
    let address = addresses[0]["addr_info"][0]["local"].as_str().expect("an address").to_owned();
    Run::new("busybox").args(["nc", "-w", "20", &address, &port.to_string()]).run()
}
