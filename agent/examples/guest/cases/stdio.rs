//! Standard streams and terminals.

use std::time::{Duration, Instant};

use ravelin_proto::agent as api;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::container::{Container, sh, sleeper};
use crate::host::{Client, process, spec};

pub async fn output_apart(client: Client) {
    let (status, out, err) = sh(&client, "apart", "echo out; echo err >&2; ls /proc/self/fd | wc -l").await;
    assert_eq!((status, err.as_str()), (0, "err\n"));
    // stdin, stdout, stderr, and the directory itself.
    assert_eq!(out, "out\n4\n");
    let mut user = spec(&["sh", "-c", "echo opened > /dev/stdout; echo err > /dev/stderr"]);
    user["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    let container = Container::create(&client, "apart", user).await.unwrap();
    let (status, out, err) = container.finish().await;
    assert_eq!((status, out.as_str(), err.as_str()), (0, "opened\n", "err\n"));
}

pub async fn big_output(client: Client) {
    let script = "dd if=/dev/zero bs=64k count=1600 2>/dev/null; echo end";
    let mut container = Container::create(&client, "big", spec(&["sh", "-c", script])).await.unwrap();
    container.start().await;
    // A slow start: the process waits, nothing is lost.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let begin = Instant::now();
    let mut all = Vec::new();
    container.streams.stdout.read_to_end(&mut all).await.unwrap();
    println!("        100 MiB in {:?}", begin.elapsed());
    assert_eq!(all.len(), 1600 * 65536 + 4);
    assert!(all.ends_with(b"end\n"));
    assert_eq!(container.wait("").await.exit_status, 0);
    container.delete().await;
}

pub async fn standard_input(client: Client) {
    let mut container =
        Container::create(&client, "in", spec(&["sh", "-c", "cat; echo done"])).await.unwrap();
    container.start().await;
    container.streams.stdin.write_all(b"some words\n").await.unwrap();
    container.streams.stdin.shutdown().await.unwrap();
    assert_eq!(container.streams.out().await, "some words\ndone\n");
    container.end().await;
}

pub async fn terminal(client: Client) {
    let mut tty =
        spec(&["sh", "-c", "tty; stty size; read line; echo got $line; stty size; ls -l /dev/console"]);
    tty["process"]["consoleSize"] = json!({"width": 90, "height": 33});
    tty["process"]["terminal"] = json!(true);
    let mut container = Container::create_with(&client, "tty", tty, true, |_| ()).await.unwrap();
    container.start().await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let resize =
        api::ResizeTtyRequest { container_id: "tty".into(), exec_id: String::new(), columns: 120, rows: 40 };
    container.client.resize_tty(resize).await.unwrap();
    container.streams.stdin.write_all(b"word\n").await.unwrap();
    let out = container.streams.out().await;
    for part in ["/dev/pts/0", "33 90", "got word", "40 120", "/dev/console"] {
        assert!(out.contains(part), "{part}: {out}");
    }
    container.end().await;
}

pub async fn user_terminal(client: Client) {
    let mut tty = spec(&["sh", "-c", "echo opened > /dev/stdout; id -u"]);
    tty["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    let mut container = Container::create_with(&client, "tty", tty, true, |_| ()).await.unwrap();
    container.start().await;
    let out = container.streams.out().await;
    assert!(out.contains("opened") && out.contains("1000"), "{out}");
    container.end().await;
}

pub async fn daemon_keeps_stdout(client: Client) {
    let mut container = sleeper(&client, "dm").await;
    let mut streams =
        container.exec_with("e", process(&["sh", "-c", "(sleep 1000 &) ; echo words"]), false).await.unwrap();
    let waited =
        tokio::time::timeout(Duration::from_secs(5), container.wait("e")).await.expect("wait answers");
    assert_eq!(waited.exit_status, 0);
    container.client.delete(container.name("e")).await.unwrap();
    assert_eq!(streams.out().await, "words\n");
    container.end().await;
}

pub async fn null_streams(client: Client) {
    let null = |request: &mut api::CreateContainerRequest| request.stdio = None;
    let script = "echo out && echo err >&2 && ! read line && echo in >&0 && exit 7";
    for uid in [0, 1000] {
        let mut silent = spec(&["sh", "-c", script]);
        silent["process"]["user"] = json!({"uid": uid, "gid": uid});
        let mut container = Container::create_with(&client, "null", silent, false, null).await.unwrap();
        container.start().await;
        assert_eq!(container.wait("").await.exit_status, 7);
        container.delete().await;
    }
    let mut container = sleeper(&client, "null").await;
    let request = api::ExecRequest {
        container_id: "null".into(),
        exec_id: "e".into(),
        process: process(&["sh", "-c", script]).to_string().into_bytes().into(),
        stdio: None,
    };
    container.client.exec(request).await.unwrap();
    container.client.start(container.name("e")).await.unwrap();
    assert_eq!(container.wait("e").await.exit_status, 7);
    container.end().await;
}
