use std::path::Path;

use ravelin_policy::{PolicyConfig, Size};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::create::called_off;
use super::testing::container;
use super::*;
use crate::agent::testing::Fake;
use crate::node_lock;
use crate::rootfs::{LayerStore, RootfsMount};
use crate::sandbox::testing::{kill_for_memory, pod_of, sandbox, silent_pod};
use crate::stdio::Fifos;
use crate::stdio::testing::fifo;

const SIZE: Size = Size { vcpus: 1, cpu_millis: 1000, memory_mib: 512 };

#[tokio::test(start_paused = true)]
async fn an_output_that_the_guest_leaves_open_ends_some_time_after_its_container() {
    let pod = Arc::new(pod_of(&Fake::default()).await);
    let directory = tempfile::tempdir().unwrap();
    let stdout = fifo(directory.path(), "stdout");
    let mut reader = pipe::OpenOptions::new().open_receiver(&stdout).unwrap();
    let fifos = Fifos::open(Paths { stdout, ..Paths::default() }).await.unwrap();
    let ids = fifos.ids(&pod.next_stream);
    let io = fifos.connect(pod.agent.machine(), &ids).await.unwrap();
    let container = container(&pod, io, ContainerLimits::default());
    container.watch(&sandbox(&pod, SIZE), &Publisher::start(None, "k8s.io"));
    container.life().ended().await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    // A program that another test is just starting may hold a copy of the fifo for a moment, by the real clock.
    tokio::time::resume();
    let read = tokio::time::timeout(Duration::from_secs(30), reader.read_to_end(&mut Vec::new())).await;
    read.expect("containerd reads the end").unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_container_that_ends_while_it_is_started_has_started_before_it_ended() {
    let fake = Fake::default();
    let pod = Arc::new(pod_of(&fake).await);
    let container = container(&pod, Io::default(), ContainerLimits::default());
    let publisher = Publisher::start(None, "k8s.io");
    let starting = {
        let (container, publisher) = (Arc::clone(&container), publisher.clone());
        tokio::spawn(async move { container.start(&publisher).await })
    };
    // The guest has started it and its answer is on its way; meanwhile the process ends.
    tokio::time::sleep(Duration::from_secs(1)).await;
    container.watch(&sandbox(&pod, SIZE), &publisher);
    tokio::time::sleep(Duration::from_secs(1)).await;
    fake.let_start();
    starting.await.unwrap().unwrap();
    container.life().ended().await;
    tokio::task::yield_now().await;
    assert_eq!(publisher.queued(), ["/tasks/start", "/tasks/exit"]);
}

#[tokio::test(start_paused = true)]
async fn the_ends_of_execs_are_told_before_that_of_their_container() {
    let fake = Fake::default();
    let pod = Arc::new(pod_of(&fake).await);
    let (container, sandbox) =
        (container(&pod, Io::default(), ContainerLimits::default()), sandbox(&pod, SIZE));
    let publisher = Publisher::start(None, "k8s.io");
    fake.let_start();
    container.start(&publisher).await.unwrap();
    // The guest leaves its output open, so that its end waits for last words; the container's own does not.
    let directory = tempfile::tempdir().unwrap();
    let paths = Paths { stdout: fifo(directory.path(), "stdout"), ..Paths::default() };
    container.add_exec(Exec::new("e".to_owned(), Vec::new(), paths)).unwrap();
    container.add_exec(Exec::new("never-started".to_owned(), Vec::new(), Paths::default())).unwrap();
    container.exec("e").unwrap().start(&container, &sandbox, &publisher).await.unwrap();
    container.watch(&sandbox, &publisher);
    container.life().ended().await;
    tokio::task::yield_now().await;
    assert_eq!(publisher.exits(), ["e", "c"]);
}

#[tokio::test(start_paused = true)]
async fn containers_of_a_machine_that_was_killed_for_memory_were_killed_for_memory() {
    let pod = Arc::new(pod_of(&Fake::default()).await);
    let sandbox = sandbox(&pod, SIZE);
    let publisher = Publisher::start(None, "k8s.io");
    kill_for_memory(&sandbox).await;
    for _ in 0..2 {
        let container = container(&pod, Io::default(), ContainerLimits::default());
        container.watch(&sandbox, &publisher);
        assert_eq!(container.life().ended().await.status, 137);
    }
    tokio::task::yield_now().await;
    assert_eq!(publisher.queued(), ["/tasks/oom", "/tasks/exit"].repeat(2));
}

/// A request for a container that says something, with its bundle in `directory`.
fn request(directory: &Path, rootfs: Vec<RootfsMount>) -> Request {
    let spec = serde_json::json!({ "ociVersion": "1.1.0", "root": { "path": "rootfs" },
                                   "process": { "cwd": "/", "args": ["sh"], "user": { "uid": 0, "gid": 0 } },
                                   "linux": { "namespaces": [{ "type": "pid" }] } });
    std::fs::write(directory.join("config.json"), spec.to_string()).unwrap();
    let paths = Paths { stdout: fifo(directory, "stdout"), ..Paths::default() };
    Request { id: "c".to_owned(), bundle: directory.to_str().unwrap().to_owned(), rootfs, paths }
}

#[tokio::test(start_paused = true)]
async fn streams_are_opened_only_when_the_layers_are_there() {
    let fake = Fake::default();
    let pod = Arc::new(pod_of(&fake).await);
    let directory = tempfile::tempdir().unwrap();
    let request = request(directory.path(), Vec::new());
    let neighbours = Neighbours::default();
    let made = create(request, pod, &PolicyConfig::default(), &neighbours, &CancellationToken::new()).await;
    let error = made.unwrap_err().to_string();
    assert!(error.contains("no root file system"), "{error}");
    assert_eq!(fake.streams(), 0, "the agent would wait for a container that names them");
}

#[tokio::test]
async fn a_creation_is_called_off_at_once_while_its_images_are_still_to_be_made() {
    let fake = Fake::default();
    let mut pod = pod_of(&fake).await;
    let directory = tempfile::tempdir().unwrap();
    let [layer, images] = ["layer", "images"].map(|name| directory.path().join(name));
    std::fs::create_dir(&layer).unwrap();
    std::fs::create_dir(&images).unwrap();
    pod.layers = LayerStore::new(&images, Duration::from_secs(600));
    // Whatever number of images may be made at a time, others' are.
    let others = || node_lock::acquire_any(&images, "build", 64, Duration::ZERO).unwrap();
    let _others: Vec<_> = (0..64).map(|_| others()).collect();
    let source = layer.canonicalize().unwrap().to_str().unwrap().to_owned();
    let mount = RootfsMount { kind: "bind".to_owned(), source, options: vec!["ro".to_owned()] };
    let (cancelled, neighbours) = (CancellationToken::new(), Neighbours::default());
    let (request, policy) = (request(directory.path(), vec![mount]), PolicyConfig::default());
    let mut creating = std::pin::pin!(create(request, Arc::new(pod), &policy, &neighbours, &cancelled));
    let waits = tokio::time::timeout(Duration::from_millis(200), &mut creating).await;
    assert!(waits.is_err(), "it waits for its turn");
    cancelled.cancel();
    let made = tokio::time::timeout(Duration::from_secs(30), creating).await.expect("it ends");
    assert_eq!(made.unwrap_err().to_string(), called_off("c").to_string());
    assert_eq!(fake.streams(), 0);
}

/// As of runc's shim: whoever holds a pipe open is read from; a terminal ends with the process that it was made for.
#[tokio::test(start_paused = true)]
async fn pipes_outlive_their_exec_and_a_terminal_does_not() {
    let fake = Fake::default();
    let pod = Arc::new(pod_of(&fake).await);
    let (container, sandbox) =
        (container(&pod, Io::default(), ContainerLimits::default()), sandbox(&pod, SIZE));
    let publisher = Publisher::start(None, "k8s.io");
    fake.let_start();
    container.start(&publisher).await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let (mut readers, mut execs) = (Vec::new(), Vec::new());
    for terminal in [false, true] {
        let stdout = fifo(directory.path(), &format!("stdout-{terminal}"));
        readers.push(pipe::OpenOptions::new().open_receiver(&stdout).unwrap());
        let exec = Arc::new(Exec::new(
            format!("e-{terminal}"),
            Vec::new(),
            Paths { stdout, terminal, ..Paths::default() },
        ));
        exec.start(&container, &sandbox, &publisher).await.unwrap();
        exec.life().ended().await;
        execs.push(exec);
    }
    tokio::time::sleep(Duration::from_secs(60)).await;
    let still_open = readers[0].try_read(&mut [0; 1]).unwrap_err();
    assert_eq!(still_open.kind(), std::io::ErrorKind::WouldBlock);
    // A program that another test is just starting may hold a copy of the fifo for a moment, by the real clock.
    tokio::time::resume();
    let read = tokio::time::timeout(Duration::from_secs(30), readers[1].read_to_end(&mut Vec::new())).await;
    read.expect("the terminal has ended").unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_guest_is_told_how_long_the_caller_of_an_exec_waits() {
    let fake = Fake::default();
    let pod = Arc::new(pod_of(&fake).await);
    let (container, sandbox) =
        (container(&pod, Io::default(), ContainerLimits::default()), sandbox(&pod, SIZE));
    let exec = Arc::new(Exec::new("e".to_owned(), Vec::new(), Paths::default()));
    container.life().set(Phase::Running);
    fake.let_start();
    exec.start(&container, &sandbox, &Publisher::start(None, "k8s.io")).await.unwrap();
    assert_eq!(fake.timed(), ["exec", "start"]);
}

#[tokio::test(start_paused = true)]
async fn the_counters_of_a_silent_guest_are_the_last_ones_and_given_at_once() {
    let pod = Arc::new(silent_pod().await);
    let container = container(&pod, Io::default(), ContainerLimits::default());
    let mut last = Metrics::new();
    last.cpu.mut_or_insert_default().usage_usec = 7;
    *lock(&container.counters) = Some(last.clone());
    // containerd asks about all the containers of a node one after another, and gives up soon.
    for at_most in [Duration::from_secs(1), Duration::ZERO] {
        let asked = Instant::now();
        assert_eq!(container.stats().await.unwrap(), last);
        assert!(asked.elapsed() <= at_most, "{:?}", asked.elapsed());
    }
}
