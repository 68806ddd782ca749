//! Limits and counters.

use std::path::Path;
use std::time::{Duration, Instant};

use ravelin_proto::agent as api;
use serde_json::json;
use tonic::Code;

use crate::container::{Container, sh, sleeper};
use crate::host::{Client, process, spec};

pub async fn limits(client: Client) {
    let mut limited = spec(&["sleep", "1000"]);
    limited["linux"]["resources"]["memory"] = json!({"limit": 64 << 20, "swap": 64 << 20});
    limited["linux"]["resources"]["pids"] = json!({"limit": 20});
    limited["linux"]["resources"]["unified"] = json!({"memory.oom.group": "1", "memory.swap.max": "0"});
    limited["linux"]["resources"]["hugepageLimits"] =
        json!([{"pageSize": "2MB", "limit": 0}, {"pageSize": "1GB", "limit": 0}]);
    let mut container = Container::create(&client, "lim", limited).await.unwrap();
    container.start().await;
    let show = ["sh", "-c", "cd /sys/fs/cgroup; cat memory.max pids.max cpu.max memory.oom.group"];
    assert_eq!(container.exec("e", &show).await.1, "67108864\n20\n200000 100000\n1\n");
    // What a distribution's kernel has its programs dump.
    assert_eq!(container.exec("e", &["cat", "/proc/self/coredump_filter"]).await.1, "00000033\n");
    let resources = json!({"memory": {"limit": 128 << 20}, "cpu": {"quota": 50000, "period": 100000}});
    let update = api::UpdateRequest {
        container_id: "lim".into(),
        resources: resources.to_string().into_bytes().into(),
    };
    container.client.update(update).await.unwrap();
    assert_eq!(container.exec("e", &show).await.1, "134217728\n20\n50000 100000\n1\n");
    // An exec into a container that is full says so.
    let mut sleepers = 0;
    let refused = loop {
        let sleeper = container.exec_with(&format!("s{sleepers}"), process(&["sleep", "1000"]), false).await;
        let Err(refused) = sleeper else {
            sleepers += 1;
            continue;
        };
        break refused;
    };
    assert!((17..20).contains(&sleepers), "{sleepers}: {refused}");
    assert!(refused.message().contains("as many processes as it may"), "{refused}");
    container.end().await;
}

pub async fn oom(mut client: Client) {
    let mut events = client.events(api::Empty {}).await.unwrap().into_inner();
    let mut hungry = spec(&["sh", "-c", "dd if=/dev/zero of=/dev/null bs=200M count=1"]);
    hungry["linux"]["resources"]["memory"] = json!({"limit": 32 << 20});
    let mut container = Container::create(&client, "oom", hungry).await.unwrap();
    container.start().await;
    let ended = container.wait("").await;
    assert!(ended.oom_killed, "{ended:?}");
    assert_eq!(ended.exit_status, 137);
    let next = events.message().await.unwrap().unwrap();
    assert!(matches!(next.kind, Some(api::event::Kind::Oom(oom)) if oom.container_id == "oom"));
    let next = events.message().await.unwrap().unwrap();
    assert!(matches!(next.kind, Some(api::event::Kind::Exit(exit)) if exit.exit_status == 137));
    container.delete().await;
    // What is too little even for a first process is told from a fault.
    let mut starved = spec(&["true"]);
    starved["linux"]["resources"]["memory"] = json!({"limit": 4096});
    let refused = Container::create(&client, "oom", starved).await.err().unwrap();
    assert!(refused.message().contains("memory limit too low"), "{refused}");
    let (status, _, _) = sh(&client, "oom", "exit 0").await;
    assert_eq!(status, 0);
}

pub async fn fork_bomb(client: Client) {
    let bomb = "bomb() { bomb | bomb & }; bomb; while :; do sleep 1; done";
    let mut container = Container::create(&client, "bomb", spec(&["sh", "-c", bomb])).await.unwrap();
    container.start().await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    let pids = api::ContainerRequest { container_id: "bomb".into() };
    let begin = Instant::now();
    let count = container.client.list_pids(pids).await.unwrap().into_inner().pids.len();
    println!("        {count} processes; the agent answers in {:?}", begin.elapsed());
    assert!(count > 200);
    let begin = Instant::now();
    container.kill("", 9, true).await.unwrap();
    assert_eq!(container.wait("").await.exit_status, 137);
    container.delete().await;
    println!("        gone in {:?}", begin.elapsed());
    assert_eq!(sh(&client, "after", "exit 0").await.0, 0);
}

/// Lets the agent have no more threads and processes than it has, or as many as it wants again.
fn agent_processes(most: &str) {
    std::fs::write(Path::new(ravelin_agent::paths::AGENT_CGROUP).join("pids.max"), most).unwrap();
}

/// The first call that needs a thread is answered although none can be made.
pub async fn a_thread_from_the_start(client: &Client) {
    agent_processes("1");
    let nothing = api::ReadVolumeRequest { volume: "none".into(), ..Default::default() };
    let answer = client.clone().read_volume(nothing).await;
    agent_processes("max");
    assert_eq!(answer.unwrap_err().code(), Code::NotFound);
}

/// When there are no more threads to be had, the agent works with those that it has.
pub async fn no_more_threads(client: Client) {
    let mut container = sleeper(&client, "thr").await;
    container.kill("", 9, true).await.unwrap();
    container.wait("").await;
    // Longer than the ten seconds after which tokio ends a thread without work, unless it is told otherwise.
    tokio::time::sleep(Duration::from_secs(11)).await;
    agent_processes("1");
    let counts = futures_util::future::join_all((0..40).map(|_| {
        let mut client = client.clone();
        async move { client.stats(api::ContainerRequest { container_id: "thr".into() }).await }
    }))
    .await;
    let name = container.name("");
    let deleted = container.client.delete(name).await;
    agent_processes("max");
    for count in counts {
        count.unwrap();
    }
    deleted.unwrap();
    assert_eq!(sh(&client, "thr", "echo on").await.1, "on\n");
}

pub async fn stats(client: Client) {
    let mut container = sleeper(&client, "sta").await;
    let name = api::ContainerRequest { container_id: "sta".into() };
    let before = container.client.stats(name.clone()).await.unwrap().into_inner();
    container
        .exec(
            "e",
            &[
                "sh",
                "-c",
                "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; dd if=/dev/zero of=/f bs=1M count=8; sync",
            ],
        )
        .await;
    let after = container.client.stats(name.clone()).await.unwrap().into_inner();
    assert!(after.cpu.unwrap().usage_usec > before.cpu.unwrap().usage_usec);
    let memory = after.memory.unwrap();
    assert!(memory.usage > 0 && memory.usage_limit == u64::MAX && memory.stat.contains_key("anon"));
    assert_eq!(after.pids_current, 1);
    println!("        io {:?}", after.io);
    assert_eq!(container.client.list_pids(name).await.unwrap().into_inner().pids.len(), 1);
    container.end().await;
}
