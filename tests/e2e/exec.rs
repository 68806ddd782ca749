//! Further processes in running containers.

use std::thread;
use std::time::{Duration, Instant};

use ravelin_tests::{Host, Run, images};

use crate::assert_says;

#[test]
fn an_exec_gives_its_output_and_exit_code() {
    let host = Host::shared();
    let pod = host.common_pod();
    let container = pod.container().image(images::USER).idle().env("COLOUR", "blue").start();

    let done = container.exec(&["sh", "-c", "echo out; echo err >&2"]);
    assert_eq!((done.code, done.text().as_str()), (0, "out\n\nerr"));
    // crictl says a failing command's exit code in words.
    let failed = container.exec(&["sh", "-c", "echo err >&2; exit 9"]);
    assert_ne!(failed.code, 0);
    assert_says(&failed.stderr, "exited with 9: err");
    // It is a process of the container: same user, folder, environment, file system, hostname.
    let seen = container.exec_sh("id -u; pwd; echo $COLOUR; echo $GREETING; hostname; cat /proc/1/comm");
    let hostname = pod.inspect()["status"]["metadata"]["name"].as_str().unwrap().to_owned();
    assert_eq!(seen, format!("1000\n/home/user\nblue\nhello\n{hostname}\nsh"));

    let missing = container.exec(&["/no/such/program"]);
    assert_ne!(missing.code, 0);
    assert_says(&missing.stderr, "/no/such/program");
    // Over the streaming interface as well.
    let streamed = Run::crictl().args(["exec", &container.id, "sh", "-c", "echo out; echo err >&2"]).run();
    assert_eq!((streamed.code, streamed.text().as_str(), streamed.stderr.as_str()), (0, "out\n", "err\n"));
    let streamed = Run::crictl().args(["exec", &container.id, "sh", "-c", "echo out; exit 9"]).run();
    assert_eq!(streamed.text(), "out\n");
    assert_says(&streamed.stderr, "exit code 9");
}

#[test]
fn an_exec_that_takes_too_long_is_killed() {
    let host = Host::shared();
    let pod = host.common_pod();
    let container = pod.container().idle().start();
    let started = Instant::now();
    let done = Run::crictl().args(["exec", "--sync", "--timeout", "3", &container.id, "sleep", "4321"]).run();
    assert_ne!(done.code, 0);
    assert!(started.elapsed() >= Duration::from_secs(3));
    assert_says(&done.stderr.to_lowercase(), "exceeded");
    let processes = container.exec_sh("ps -o args");
    assert!(!processes.contains("4321"), "still there: {processes}");
}

#[test]
fn many_execs_at_once_each_get_their_own_output() {
    let many = if Host::whole() { 50 } else { 20 };
    let host = Host::shared();
    let pod = host.common_pod();
    let container = pod.container().idle().start();
    thread::scope(|scope| {
        let execs: Vec<_> = (0..many)
            .map(|number| {
                scope.spawn({
                    let container = &container;
                    move || container.exec_sh(&format!("echo exec {number}; echo {number} >> /all"))
                })
            })
            .collect();
        for (number, exec) in execs.into_iter().enumerate() {
            assert_eq!(exec.join().expect("the exec succeeds"), format!("exec {number}"));
        }
    });
    assert_eq!(container.exec_sh("sort -n /all | uniq | wc -l"), many.to_string());
    // Their processes are gone: this shell, ps and the container's own two are all there is.
    let processes = container.exec_sh("ps -o args");
    assert!(!processes.contains("echo exec"), "still there: {processes}");
}

#[test]
fn an_exec_ends_with_its_container() {
    let host = Host::shared();
    let pod = host.common_pod();
    let container = pod.container().idle().start();
    let mut exec = container.exec_session(&["sh", "-c", "echo ready; exec sleep 1000"]);
    exec.hear("ready");
    container.stop(Duration::from_secs(60));
    exec.finish();
    assert_ne!(container.exec(&["true"]).code, 0, "an exec works in an ended container");
}
