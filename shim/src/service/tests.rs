use std::path::Path;
use std::time::Duration;

use containerd_shim_protos::api::{ExecProcessRequest, PidsRequest, StateRequest, Status};
use containerd_shim_protos::shim_async::Task;
use ravelin_policy::Size;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::agent::testing::Fake;
use crate::sandbox::testing::{pod_of, sandbox, silent_pod};
use crate::sandbox::{ContainerLimits, Pod};
use crate::stdio::{Io, Paths};
use crate::task::testing::container;

const PROCESS: &str = r#"{ "args": ["true"], "cwd": "/", "user": { "uid": 0, "gid": 0 } }"#;
const SIZE: Size = Size { vcpus: 1, cpu_millis: 1000, memory_mib: 512 };

fn service() -> Service {
    let directory = StateDir::new(Path::new("/nonexistent"), "s");
    Service::new(Config::default(), Publisher::start(None, "k8s.io"), directory, State::default())
}

fn stopped(pod: &Arc<Pod>) -> Entry<Container> {
    let container = container(pod, Io::default(), ContainerLimits::default());
    container.life().set(Phase::Stopped(Exit::now(0)));
    Entry::Ready(container)
}

#[tokio::test(start_paused = true)]
async fn a_shim_ends_when_nothing_of_it_has_lived_for_a_while() {
    let pod = Arc::new(silent_pod().await);
    let service = service();
    let waits = async || tokio::time::timeout(Duration::from_secs(150), service.idle()).await.is_err();
    assert!(!waits().await, "nobody ever wanted anything");
    // Its sandbox was deleted before it, and nobody deletes what is left of it.
    service.tasks().containers.insert("dead".to_owned(), stopped(&pod));
    assert!(!waits().await, "a container that has ended is left");

    let alive = Entry::Ready(container(&pod, Io::default(), ContainerLimits::default()));
    service.tasks().containers.insert("alive".to_owned(), alive);
    assert!(waits().await, "a container lives");
    service.tasks().containers.remove("alive");
    let (making, _guard) = Making::new("new", &CancellationToken::new());
    service.tasks().containers.insert("new".to_owned(), Entry::Making(making));
    assert!(waits().await, "a container is being made");
    service.tasks().containers.remove("new");
    service.tasks().sandbox = Entry::Ready(sandbox(&pod, SIZE));
    assert!(waits().await, "the sandbox is there");
}

#[tokio::test(start_paused = true)]
async fn a_resize_that_fails_leaves_the_limits_as_they_were() {
    let resources = |json: serde_json::Value| -> LinuxResources { serde_json::from_value(json).unwrap() };
    let had = ContainerLimits::default()
        .changed_by(&resources(json!({
            "cpu": { "quota": 50000, "period": 100000, "shares": 512 },
            "memory": { "limit": 256 << 20 }, "pids": { "limit": 100 }
        })))
        .unwrap();
    let lower = json!({ "cpu": { "quota": 40000, "shares": 2 }, "memory": { "limit": 128 << 20 }, "pids": { "limit": 7 } });
    let lower = lower.to_string().into_bytes();
    // Neither sandbox has a cgroup, so that the first has no memory to give back, and the second no CPU time; the third has
    // a guest that has done a part of it and then refuses.
    for (size, refuses) in [(SIZE, false), (Size { cpu_millis: 500, ..SIZE }, false), (SIZE, true)] {
        let fake = Fake::default();
        fake.refuse_next_update(refuses);
        let pod = Arc::new(pod_of(&fake).await);
        let container = container(&pod, Io::default(), had.clone());
        let service = service();
        service.tasks().sandbox = Entry::Ready(sandbox(&pod, size));
        service.update(&container, lower.clone()).await.unwrap_err();
        let updates: Vec<_> = fake.updates().into_iter().map(|update| update.resources.to_vec()).collect();
        assert_eq!(updates, [lower.clone(), had.to_json()]);
        assert_eq!(container.limits(), had);
    }
}

fn context() -> ttrpc::r#async::TtrpcContext {
    ttrpc::r#async::TtrpcContext {
        mh: ttrpc::MessageHeader::default(),
        metadata: HashMap::new(),
        timeout_nano: 0,
        connection_data: Arc::default(),
    }
}

/// A service of a sandbox and of the container `c`, which runs.
async fn serving() -> (Arc<Service>, Arc<Container>) {
    let pod = Arc::new(silent_pod().await);
    let container = container(&pod, Io::default(), ContainerLimits::default());
    container.life().set(Phase::Running);
    let service = Arc::new(service());
    service.tasks().sandbox = Entry::Ready(sandbox(&pod, SIZE));
    service.tasks().containers.insert("c".to_owned(), Entry::Ready(Arc::clone(&container)));
    (service, container)
}

fn exec_of(process: &[u8]) -> ExecProcessRequest {
    let mut request = ExecProcessRequest::new();
    request.id = "c".to_owned();
    request.exec_id = "e".to_owned();
    request.spec.mut_or_insert_default().value = process.to_vec();
    request
}

#[tokio::test]
async fn an_exec_that_is_no_process_is_refused_when_it_is_added() {
    let (service, container) = serving().await;
    let handler = handlers::Handler::new(Arc::clone(&service));
    for process in ["", "sh", "[]"] {
        let refused = handler.exec(&context(), exec_of(process.as_bytes())).await.unwrap_err();
        let ttrpc::Error::RpcStatus(status) = refused else { panic!("{refused}") };
        assert_eq!(status.code(), ttrpc::Code::INVALID_ARGUMENT);
        assert!(status.message.contains("the process e for the container c"), "{}", status.message);
        assert!(container.exec("e").is_err());
    }
    handler.exec(&context(), exec_of(PROCESS.as_bytes())).await.unwrap();
    container.exec("e").unwrap();
}

#[tokio::test]
async fn an_exec_stands_still_with_its_container_until_it_has_ended() {
    let (service, container) = serving().await;
    let handler = handlers::Handler::new(Arc::clone(&service));
    handler.exec(&context(), exec_of(PROCESS.as_bytes())).await.unwrap();
    let exec = container.exec("e").unwrap();
    let status = async || {
        let mut request = StateRequest::new();
        request.id = "c".to_owned();
        request.exec_id = "e".to_owned();
        handler.state(&context(), request).await.unwrap().status.unwrap()
    };
    exec.life().set(Phase::Running);
    assert_eq!(status().await, Status::RUNNING);
    container.life().set(Phase::Paused);
    assert_eq!(status().await, Status::PAUSED);
    exec.life().set(Phase::Stopped(Exit::now(0)));
    assert_eq!(status().await, Status::STOPPED);
}

#[tokio::test]
async fn the_pid_of_a_state_is_among_the_pids() {
    let (service, container) = serving().await;
    let handler = handlers::Handler::new(Arc::clone(&service));
    let machine = service.sandbox().unwrap().pid();
    let sandbox_id = service.sandbox().unwrap().id.clone();
    for (id, expected) in [("c", vec![container.pid(), machine]), (sandbox_id.as_str(), vec![machine])] {
        let mut request = PidsRequest::new();
        request.id = id.to_owned();
        let pids = handler.pids(&context(), request).await.unwrap().processes;
        assert_eq!(pids.iter().map(|process| process.pid).collect::<Vec<_>>(), expected);
    }
}

/// An exec runs in a container that is still to be started, as with runc, and the container starts beside it.
#[tokio::test(start_paused = true)]
async fn an_exec_runs_before_its_container_is_started() {
    let fake = Fake::default();
    fake.let_start();
    let pod = Arc::new(pod_of(&fake).await);
    let (container, sandbox) =
        (container(&pod, Io::default(), ContainerLimits::default()), sandbox(&pod, SIZE));
    let publisher = Publisher::start(None, "k8s.io");
    container.add_exec(Exec::new("e".to_owned(), PROCESS.into(), Paths::default())).unwrap();
    let exec = container.exec("e").unwrap();
    exec.start(&container, &sandbox, &publisher).await.unwrap();
    assert_eq!((exec.life().phase(), container.life().phase()), (Phase::Running, Phase::Created));
    container.start(&publisher).await.unwrap();
}
