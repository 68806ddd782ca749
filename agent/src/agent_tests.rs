use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::mpsc;

use api::agent_server::Agent as _;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::json;

use super::*;
use crate::reaper::Reaper;
use crate::service::AgentService;
use crate::spawner::Spawner;

/// An agent whose spawner never answers, and what keeps that from being seen.
fn agent() -> (Arc<Agent>, OwnedFd) {
    let (spawner, other) = Spawner::silent().unwrap();
    (Agent::new(Services::new(spawner, Reaper::default()).unwrap()), other)
}

/// Notes a container that has ended, of one layer, with this directory for its cgroup.
fn note(agent: &Agent, id: &str, cgroup: PathBuf) -> Arc<Container> {
    let container = Container::in_cgroup(id, vec![1], cgroup);
    container.init.end(Ended { exit: Exit::now(7), oom_killed: false });
    let mut state = agent.state();
    if state.extents.take_layers(&[1]).is_err() {
        let request = api::AddExtentRequest { id: 1, length: 4096, ..Default::default() };
        state.extents.insert(&request);
        state.extents.take_layers(&[1]).unwrap();
    }
    state.containers.insert(id.to_owned(), Arc::clone(&container));
    container
}

const LAYER: api::RemoveExtentRequest = api::RemoveExtentRequest { id: 1, disk: 0 };

#[tokio::test]
async fn a_container_of_which_something_stays_is_known_until_another_delete_removes_that() {
    const ID: &str = "unit-test-of-delete";
    let (agent, _other) = agent();
    let parent = tempfile::tempdir().unwrap();
    let cgroup = parent.path().join("c");
    fs::create_dir(&cgroup).unwrap();
    let container = note(&agent, ID, cgroup.clone());
    for _ in 0..2 {
        // As processes would, the files that are written there keep the directory from being removed.
        let refused = agent.delete_container(ID, Instant::now()).await.unwrap_err();
        assert!(refused.to_string().starts_with("remove the cgroup of"), "{refused}");
        assert_eq!(container.init.phase(), Phase::Stopped);
        assert!(agent.container(ID).is_ok());
        assert!(matches!(agent.state().extents.take(&LAYER), Err(AgentError::WrongState(_))));
        let again = api::CreateContainerRequest { container_id: ID.into(), ..Default::default() };
        let again = agent.create_container(again, Instant::now()).await;
        assert!(matches!(again, Err(AgentError::AlreadyExists(_))));
    }
    fs::remove_dir_all(&cgroup).unwrap();
    assert_eq!(agent.delete_container(ID, Instant::now()).await.unwrap().status, 7);
    assert!(matches!(agent.container(ID), Err(AgentError::NotFound(_))));
    assert!(agent.state().extents.take(&LAYER).is_ok());
}

#[tokio::test]
async fn of_two_deletions_at_once_one_deletes_and_the_layers_are_given_back_once() {
    let (agent, _other) = agent();
    let nowhere = tempfile::tempdir().unwrap().path().to_owned();
    note(&agent, "unit-test-of-another", nowhere.clone());
    let container = note(&agent, "unit-test-of-two", nowhere);
    let delete = || agent.delete_container(&container.id, Instant::now());
    let (one, other) = tokio::join!(delete(), delete());
    assert!(one.is_ok() && matches!(other, Err(AgentError::NotFound(_))));
    assert!(matches!(agent.state().extents.take(&LAYER), Err(AgentError::WrongState(_))));
}

#[tokio::test]
async fn the_place_of_the_pods_pid_namespace_is_no_containers() {
    let (agent, _other) = agent();
    let request = api::CreateContainerRequest { container_id: "pause".into(), ..Default::default() };
    assert!(matches!(agent.create_container(request, Instant::now()).await, Err(AgentError::Invalid(_))));
}

#[tokio::test]
async fn a_creation_that_fails_leaves_its_id_free() {
    let (agent, _other) = agent();
    for _ in 0..2 {
        let request =
            api::CreateContainerRequest { container_id: "unit-test-of-create".into(), ..Default::default() };
        let refused = agent.create_container(request, Instant::now()).await;
        assert!(matches!(refused, Err(AgentError::Invalid(_))), "{refused:?}");
    }
}

#[tokio::test]
async fn the_pods_pid_namespace_is_waited_for_until_the_callers_deadline() {
    let (agent, _other) = agent();
    let begin = Instant::now();
    let patience = Duration::from_millis(50);
    let refused = blocking(move || agent.make_namespaces(None, begin + patience)).await.unwrap_err();
    assert!(refused.to_string().ends_with("not made within 0 s"), "{refused}");
    assert!((patience..patience * 100).contains(&begin.elapsed()), "{:?}", begin.elapsed());
}

type Call = Pin<Box<dyn Future<Output = std::result::Result<(), tonic::Status>> + Send>>;

/// Has a call wait for the other end of a FIFO in a file's place, and sees that others are answered meanwhile. `text` is what
/// the call reads then; without any, it writes.
async fn keeps_nobody(path: PathBuf, text: Option<&'static str>, call: Call, others: impl Future) {
    mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let (answered, are_answered) = mpsc::channel();
    let fifo = path.clone();
    let other_end = std::thread::spawn(move || {
        let alone = are_answered.recv_timeout(Duration::from_secs(10)).is_err();
        match text {
            Some(text) => fs::write(fifo, text).unwrap(),
            None => drop(fs::read(fifo).unwrap()),
        }
        alone
    });
    let waiting = tokio::spawn(call);
    for _ in 0..10 {
        // Every task that the call is made of has its turn.
        tokio::task::yield_now().await;
    }
    others.await;
    let _ = answered.send(());
    waiting.await.unwrap().unwrap();
    assert!(!other_end.join().unwrap(), "the runtime's thread waited for {}", path.display());
    fs::remove_file(path).unwrap();
}

#[tokio::test]
async fn a_call_that_waits_for_a_file_keeps_no_other_call_waiting() {
    let (agent, _other) = agent();
    let cgroups = tempfile::tempdir().unwrap();
    let (waiting, beside) = (cgroups.path().join("waiting"), cgroups.path().join("beside"));
    for cgroup in [&waiting, &beside] {
        fs::create_dir(cgroup).unwrap();
        fs::write(cgroup.join("cgroup.controllers"), "").unwrap();
    }
    let container = Container::in_cgroup("waiting", vec![], waiting.clone());
    container.init.advance(&[Phase::Creating], Phase::Running).unwrap();
    agent.state().containers.insert("waiting".into(), container);
    note(&agent, "beside", beside);
    let service = AgentService(Arc::clone(&agent));
    let others = || async {
        let beside = api::ProcessRequest { container_id: "beside".into(), exec_id: String::new() };
        assert_eq!(service.wait(tonic::Request::new(beside)).await.unwrap().get_ref().exit_status, 7);
        let beside = api::ContainerRequest { container_id: "beside".into() };
        service.stats(tonic::Request::new(beside)).await.unwrap();
    };
    macro_rules! call {
        ($method:ident($request:expr)) => {{
            let (service, request) = (service.clone(), tonic::Request::new($request));
            Box::pin(async move { service.$method(request).await.map(drop) }) as Call
        }};
    }
    let id = || "waiting".to_owned();
    let named = || api::ContainerRequest { container_id: id() };
    let kill = |signal| api::KillRequest { container_id: id(), signal, all: true, ..Default::default() };
    let limits = json!({ "pids": { "limit": 5 } }).to_string().into_bytes();
    let calls: [(&str, Option<&str>, Call); 7] = [
        ("cpu.stat", Some(""), call!(stats(named()))),
        ("cgroup.procs", Some(""), call!(list_pids(named()))),
        ("cgroup.events", Some("frozen 1\n"), call!(pause(named()))),
        ("cgroup.events", Some("frozen 0\n"), call!(resume(named()))),
        ("cgroup.procs", Some(""), call!(kill(kill(15)))),
        ("cgroup.kill", None, call!(kill(kill(9)))),
        (
            "pids.max",
            None,
            call!(update(api::UpdateRequest { container_id: id(), resources: limits.into() })),
        ),
    ];
    for (file, text, call) in calls {
        keeps_nobody(waiting.join(file), text, call, others()).await;
    }
}
