//! Further processes.

use std::time::Instant;

use serde_json::json;
use tokio::io::AsyncWriteExt;
use tonic::Code;

use crate::container::{Container, sleeper};
use crate::host::{Client, Streams, process};

pub async fn exec_cases(client: Client) {
    let mut container = sleeper(&client, "ex").await;
    let (status, out, _) =
        container.exec("e1", &["sh", "-c", "echo $$; hostname; cat /proc/1/cmdline; exit 3"]).await;
    assert_eq!(status, 3);
    assert!(out.contains("pod-1") && out.contains("sleep"), "{out}");
    let (_, out, _) = container.exec("e1", &["cat", "/proc/self/cgroup", "/proc/self/oom_score_adj"]).await;
    assert_eq!(out, "0::/\n0\n");
    let refused = container.exec_with("e2", process(&["nope"]), false).await.err().unwrap();
    println!("        {}", refused.message());
    assert!(refused.message().contains("exec: \"nope\": executable file not found in $PATH"), "{refused}");
    assert_eq!(container.wait("e2").await.exit_status, 255);
    // As containerd does after a failed start: the container is not meant.
    assert_eq!(container.kill("e2", 9, true).await.unwrap_err().code(), Code::NotFound);
    container.client.delete(container.name("e2")).await.unwrap();
    let mut streams = container.exec_with("e3", process(&["cat"]), false).await.unwrap();
    streams.stdin.write_all(b"abc").await.unwrap();
    streams.stdin.shutdown().await.unwrap();
    assert_eq!(streams.out().await, "abc");
    container.wait("e3").await;
    let mut streams = container.exec_with("e4", process(&["sleep", "1000"]), false).await.unwrap();
    let refused = container.client.delete(container.name("e4")).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    container.kill("e4", 15, false).await.unwrap();
    assert_eq!(container.wait("e4").await.exit_status, 143);
    streams.out().await;
    // An exec ends with its container.
    container.exec_with("e5", process(&["sleep", "1000"]), false).await.unwrap();
    container.kill("", 9, false).await.unwrap();
    assert_eq!(container.wait("").await.exit_status, 137);
    assert_eq!(container.wait("e5").await.exit_status, 137);
    let refused = container.exec_with("e6", process(&["true"]), false).await.err().unwrap();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    container.delete().await;
}

pub async fn exec_terminal(client: Client) {
    let mut container = sleeper(&client, "ext").await;
    let mut tty = process(&["sh", "-c", "stty size; tty; exit 4"]);
    tty["consoleSize"] = json!({"width": 77, "height": 22});
    let mut streams = container.exec_with("t", tty, true).await.unwrap();
    let out = streams.out().await;
    assert!(out.contains("22 77") && out.contains("/dev/pts/"), "{out}");
    assert_eq!(container.wait("t").await.exit_status, 4);
    container.end().await;
}

pub async fn exec_many(client: Client) {
    let container = sleeper(&client, "many").await;
    let begin = Instant::now();
    let mut tasks = Vec::new();
    for number in 0..50 {
        let mut one =
            Container { client: client.clone(), id: "many".into(), streams: Streams::open(false).await };
        tasks.push(tokio::spawn(async move {
            let text = format!("number {number}");
            let (status, out, _) = one.exec(&format!("e{number}"), &["echo", &text]).await;
            assert_eq!((status, out), (0, format!("{text}\n")));
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    println!("        50 execs at once in {:?}", begin.elapsed());
    let mut container = container;
    container.end().await;
}
