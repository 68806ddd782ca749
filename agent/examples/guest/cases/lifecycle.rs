//! Starting, ending and their errors.

use std::path::Path;
use std::time::{Duration, Instant};

use ravelin_proto::agent as api;
use serde_json::json;
use tokio::io::AsyncReadExt;
use tonic::Code;

use crate::container::{Container, sh, sleeper};
use crate::held::Held;
use crate::host::{Client, process, spec};

pub async fn plain_run(client: Client) {
    let (status, out, err) = sh(&client, "plain", "echo hello; echo $HOME; hostname; exit 7").await;
    assert_eq!((status, out.as_str(), err.as_str()), (7, "hello\n/root\npod-1\n", ""));
}

pub async fn errors(client: Client) {
    let refused = Container::create(&client, "bad", spec(&["nope"])).await.err().unwrap();
    assert!(refused.message().ends_with("exec: \"nope\": executable file not found in $PATH"), "{refused}");
    println!("        {}", refused.message());
    let refused = Container::create(&client, "bad", spec(&["/nope"])).await.err().unwrap();
    assert!(refused.message().ends_with("stat /nope: no such file or directory"), "{refused}");
    let mut bind = spec(&["true"]);
    bind["mounts"]
        .as_array_mut()
        .unwrap()
        .push(json!({"destination": "/x", "type": "bind", "options": ["rbind"]}));
    let refused = Container::create(&client, "bad", bind).await.err().unwrap();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let mut first = Container::create(&client, "bad", spec(&["true"])).await.unwrap();
    assert_eq!(
        Container::create(&client, "bad", spec(&["true"])).await.err().unwrap().code(),
        Code::AlreadyExists
    );
    let mut other = client.clone();
    let missing = api::ProcessRequest { container_id: "nobody".into(), exec_id: String::new() };
    assert_eq!(other.start(missing).await.unwrap_err().code(), Code::NotFound);
    first.start().await;
    first.wait("").await;
    assert_eq!(other.start(first.name("")).await.unwrap_err().code(), Code::FailedPrecondition);
    assert_eq!(first.kill("", 15, false).await.unwrap_err().code(), Code::NotFound);
    first.delete().await;
    let format = sh(&client, "bad", "echo junk > /junk; chmod +x /junk; exec /junk").await;
    assert_ne!(format.0, 0);
    let mut script = Container::create(&client, "bad", spec(&["/etc/notelf"])).await.unwrap();
    script.start().await;
    let text = script.streams.err().await;
    println!("        {}", text.trim());
    assert!(text.contains("exec /etc/notelf: exec format error"), "{text}");
    assert_eq!(script.wait("").await.exit_status, 255);
    script.delete().await;
    // Created, never started.
    let mut never = Container::create(&client, "bad", spec(&["true"])).await.unwrap();
    never.delete().await;
}

/// A start that waits for a file keeps no other call waiting.
pub async fn start_held_up(client: Client) {
    let mut container = Container::create(&client, "held", spec(&["echo", "started"])).await.unwrap();
    let state = Held::at(Path::new(ravelin_agent::paths::RUNTIME).join("held/state.json"));
    let starting = tokio::spawn({
        let (mut client, name) = (client.clone(), container.name(""));
        async move { client.start(name).await }
    });
    super::keeps_nobody(&client, &state).await;
    state.let_read();
    starting.await.unwrap().unwrap();
    assert_eq!(container.streams.out().await, "started\n");
    container.end().await;
}

/// A creation that its caller gave up leaves nothing, and who waits for its process is told.
pub async fn create_given_up(client: Client) {
    // Frozen behind the agent's back, the pod's cgroup holds the process at its first step.
    let freeze = |text| std::fs::write("/sys/fs/cgroup/pod/cgroup.freeze", text).unwrap();
    freeze("1");
    let mut waiting = client.clone();
    let name = api::ProcessRequest { container_id: "slow".into(), exec_id: String::new() };
    let creating = tokio::spawn({
        let client = client.clone();
        async move {
            let create =
                Container::create_within(&client, "slow", spec(&["sleep", "1000"]), Duration::from_secs(1));
            create.await.err()
        }
    });
    // It is noted at once, long before its second is over.
    let ended = loop {
        match waiting.wait(name.clone()).await {
            Err(status) if status.code() == Code::NotFound && !creating.is_finished() => {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            other => break other.unwrap().into_inner(),
        }
    };
    assert_eq!(ended.exit_status, 137);
    println!("        {}", creating.await.unwrap().expect("it was given up"));
    freeze("0");
    // It is forgotten last, when nothing of it is left.
    let begin = Instant::now();
    while waiting.wait(name.clone()).await.is_ok() {
        assert!(begin.elapsed() < Duration::from_secs(60), "the container is still known");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(!ravelin_agent::paths::container_cgroup("slow").exists());
    assert_eq!(sh(&client, "slow", "echo again").await.1, "again\n");
}

pub async fn signals(client: Client) {
    let script = "trap 'echo term; exit 5' TERM; echo ready; while :; do sleep 0.1; done";
    let mut container = Container::create(&client, "sig", spec(&["sh", "-c", script])).await.unwrap();
    container.start().await;
    let mut ready = [0; 6];
    container.streams.stdout.read_exact(&mut ready).await.unwrap();
    container.kill("", 15, false).await.unwrap();
    assert_eq!(container.streams.out().await, "term\n");
    assert_eq!(container.wait("").await.exit_status, 5);
    container.delete().await;
    let mut container = sleeper(&client, "sig").await;
    container.kill("", 9, true).await.unwrap();
    assert_eq!(container.wait("").await.exit_status, 137);
    container.delete().await;
    // SIGPIPE is as the program expects it.
    let grep = spec(&["grep", "-E", "Sig(Ign|Blk)", "/proc/self/status"]);
    let (_, out, _) = Container::create(&client, "sig", grep).await.unwrap().finish().await;
    assert!(out.contains("SigBlk:\t0000000000000000") && out.contains("SigIgn:\t0000000000000000"), "{out}");
}

pub async fn pause(client: Client) {
    let mut container = sleeper(&client, "pau").await;
    let name = api::ContainerRequest { container_id: "pau".into() };
    container.client.pause(name.clone()).await.unwrap();
    let refused = container.exec_with("e", process(&["true"]), false).await.err().unwrap();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    container.client.resume(name).await.unwrap();
    assert_eq!(container.exec("e2", &["true"]).await.0, 0);
    container.end().await;
}

fn layer_two() -> api::AddExtentRequest {
    api::AddExtentRequest { id: 2, disk: 0, offset: 64 << 20, length: 16 << 20, filesystem: "erofs".into() }
}

/// A layer whose device is open elsewhere is unmounted and stays; no container gets it until it is added again.
pub async fn half_removed_layer(mut client: Client) {
    let layer = api::RemoveExtentRequest { id: 2, disk: 0 };
    let device = std::fs::File::open("/dev/vda2").unwrap();
    for _ in 0..2 {
        let refused = client.remove_extent(layer).await.unwrap_err();
        assert!(refused.message().contains("busy"), "{refused}");
        let refused = Container::create(&client, "half", spec(&["true"])).await.err().unwrap();
        assert_eq!(refused.code(), Code::NotFound);
    }
    client.add_extent(layer_two()).await.unwrap();
    assert_eq!(sh(&client, "half", "cat /etc/top").await.1, "layer two\n");
    client.remove_extent(layer).await.unwrap_err();
    drop(device);
    client.remove_extent(layer).await.unwrap();
    client.add_extent(layer_two()).await.unwrap();
    assert_eq!(sh(&client, "half", "cat /etc/top").await.1, "layer two\n");
}

/// A layer that could not be added is none, and its place is free for another.
pub async fn refused_layer(mut client: Client) {
    let second = api::RemoveExtentRequest { id: 2, disk: 0 };
    client.remove_extent(second).await.unwrap();
    let third =
        |filesystem: &str| api::AddExtentRequest { id: 3, filesystem: filesystem.into(), ..layer_two() };
    let run = || {
        let cat = spec(&["cat", "/etc/top"]);
        Container::create_with(&client, "third", cat, false, |request| request.layers = vec![3, 1])
    };
    let mut extents = client.clone();
    for _ in 0..2 {
        // The kernel has no XFS, and the agent does not try.
        let refused = extents.add_extent(third("xfs")).await.unwrap_err();
        assert!(refused.message().contains("cannot be mounted as \"xfs\""), "{refused}");
        assert_eq!(run().await.err().unwrap().code(), Code::NotFound);
        assert!(!Path::new("/dev/vda3").exists());
    }
    extents.add_extent(third("erofs")).await.unwrap();
    assert_eq!(run().await.unwrap().finish().await.1, "layer two\n");
    extents.remove_extent(api::RemoveExtentRequest { id: 3, disk: 0 }).await.unwrap();
    extents.add_extent(layer_two()).await.unwrap();
}

pub async fn restart(mut client: Client) {
    for round in 0..5 {
        assert_eq!(sh(&client, "again", &format!("exit {round}")).await.0, round);
    }
    let refused = client.remove_extent(api::RemoveExtentRequest { id: 9, disk: 0 }).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    let mut container = sleeper(&client, "user").await;
    let layer = api::RemoveExtentRequest { id: 2, disk: 0 };
    assert_eq!(client.remove_extent(layer).await.unwrap_err().code(), Code::FailedPrecondition);
    container.end().await;
    client.remove_extent(layer).await.unwrap();
    client.add_extent(layer_two()).await.unwrap();
    assert_eq!(sh(&client, "again", "cat /etc/top").await.1, "layer two\n");
    let left = std::fs::read_dir(ravelin_agent::paths::CONTAINERS).unwrap().count();
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    assert_eq!((left, mounts.matches("overlay").count()), (0, 0), "{mounts}");
}
