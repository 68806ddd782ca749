//! Pods and containers come, end and go.

use std::time::{Duration, Instant};

use ravelin_tests::{Host, Run, eventually};

use crate::assert_says;

#[test]
fn a_container_ends_with_its_programs_exit_code() {
    let host = Host::shared();
    let pod = host.common_pod();
    let cases = [("exit 0", 0, "Completed"), ("exit 7", 7, "Error"), ("exit 255", 255, "Error")];
    let containers: Vec<_> = cases.iter().map(|(script, ..)| pod.sh(script)).collect();
    for (container, (script, code, reason)) in containers.iter().zip(cases) {
        let ended = container.ended();
        assert_eq!((ended.code, ended.reason.as_str()), (code, reason), "{script}");
    }
}

#[test]
fn a_container_ended_by_a_signal_reports_128_plus_the_signal() {
    let host = Host::shared();
    let pod = host.common_pod();
    let killed = pod.container().idle().start();
    // No handler is installed for SIGUSR1, but a container's first process is deaf to what it does not handle.
    Run::ctr().args(["tasks", "kill", "--signal", "SIGUSR1", &killed.id]).ok();
    assert_eq!(killed.state(), "CONTAINER_RUNNING");
    Run::ctr().args(["tasks", "kill", "--signal", "SIGKILL", &killed.id]).ok();
    assert_eq!(killed.ended().code, 137);
    let handled = pod.sh("trap 'echo usr1; exit 11' USR1; echo ready; while :; do sleep 1000 & wait; done");
    handled.says("ready");
    Run::ctr().args(["tasks", "kill", "--signal", "SIGUSR1", &handled.id]).ok();
    assert_eq!(handled.ended().code, 11);
    assert_eq!(handled.logs().out(), "ready\nusr1\n");
}

#[test]
fn a_program_that_cannot_be_run_is_named_in_the_error() {
    let host = Host::shared();
    let pod = host.common_pod();
    for program in ["/no/such/program", "/etc/passwd"] {
        let container = pod.container().command(&[program]).create();
        let error = container.try_start().expect_err("there is nothing to run");
        assert_says(&error, program);
        assert_ne!(container.ended().code, 0, "{program}");
    }
    // The pod is none the worse for it.
    assert_eq!(pod.sh("echo alive").output(), "alive\n");
}

#[test]
fn a_stopped_container_gets_sigterm_and_after_its_grace_sigkill() {
    let host = Host::shared();
    let pod = host.common_pod();
    let polite = pod.sh("trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 1000 & wait; done");
    let stubborn = pod.sh("trap '' TERM; echo ready; while :; do sleep 1; done");
    polite.says("ready");
    stubborn.says("ready");

    polite.stop(Duration::from_secs(120));
    assert_eq!(polite.ended().code, 3);
    assert_eq!(polite.logs().out(), "ready\nbye\n");

    let started = Instant::now();
    stubborn.stop(Duration::from_secs(3));
    assert!(started.elapsed() >= Duration::from_secs(3), "killed after {:?} of 3 s", started.elapsed());
    assert_eq!(stubborn.ended().code, 137);
}

#[test]
fn a_container_is_restarted_in_the_living_pod() {
    let host = Host::shared();
    let pod = host.common_pod();
    let script = "ls /marker 2>/dev/null; touch /marker; echo ran; exit 1";
    let named = |attempt: u32| {
        let spec = pod.container().sh(script).set("/metadata/name", "main").set("/metadata/attempt", attempt);
        spec.set("/log_path", format!("main-{attempt}.log"))
    };
    let first = named(0).start();
    assert_eq!(first.ended().code, 1);
    // All containers have ended; the pod lives, and the next attempt finds a fresh file system.
    let second = named(1).start();
    assert_eq!(second.ended().code, 1);
    assert_eq!((first.logs().out(), second.logs().out()), ("ran\n".to_owned(), "ran\n".to_owned()));
    first.remove();
    assert_eq!(pod.state(), "SANDBOX_READY");
    assert_eq!(named(2).start().ended().code, 1);
}

#[test]
fn containers_are_removed_in_every_state() {
    let host = Host::shared();
    let pod = host.pod().start();
    let created = pod.container().idle().create();
    assert_eq!(created.state(), "CONTAINER_CREATED");
    created.remove();
    let running = pod.container().idle().start();
    assert_eq!(running.state(), "CONTAINER_RUNNING");
    running.remove();
    let ended = pod.sh("exit 0");
    ended.ended();
    ended.stop(Duration::ZERO);
    ended.remove();
    let list = Run::crictl().args(["ps", "-a", "-q", "--pod", &pod.id]).ok();
    assert_eq!(list, "", "containers are left");
}

#[test]
fn a_stopped_pod_ends_its_containers_and_can_be_stopped_again() {
    let host = Host::shared();
    let pod = host.pod().start();
    let container = pod.container().idle().start();
    pod.stop();
    assert_eq!(pod.state(), "SANDBOX_NOTREADY");
    eventually("the container is seen to have ended", || {
        (container.state() == "CONTAINER_EXITED").then_some(())
    });
    assert_ne!(container.exec(&["true"]).code, 0, "an exec works in a stopped pod");
    pod.stop();
    pod.remove();
}

#[test]
fn a_paused_container_stands_still_until_it_is_resumed() {
    let host = Host::shared();
    let pod = host.common_pod();
    let ticking = pod.sh("i=0; while :; do i=$((i + 1)); echo tick $i; sleep 0.1; done");
    ticking.says("tick 3\n");
    let listed = Run::ctr().args(["tasks", "ps", &ticking.id]).ok();
    assert!(listed.lines().count() > 1, "no process is listed: {listed}");
    Run::ctr().args(["tasks", "pause", &ticking.id]).ok();
    assert_says(&Run::ctr().args(["tasks", "ls"]).ok(), "PAUSED");
    let lines = || ticking.logs().out().lines().count();
    // What had been said before may still be on its way.
    let mut before = lines();
    eventually("what was said has come through", || {
        std::thread::sleep(Duration::from_secs(1));
        (std::mem::replace(&mut before, lines()) == before).then_some(())
    });
    // Silence is no event to wait for; a container that runs says ten lines a second.
    std::thread::sleep(Duration::from_secs(5));
    let after = lines();
    assert_eq!(after, before, "lines of a paused container");
    Run::ctr().args(["tasks", "resume", &ticking.id]).ok();
    ticking.says(&format!("tick {}\n", after + 3));
}
