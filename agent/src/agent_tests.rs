use std::os::fd::OwnedFd;

use super::*;
use crate::reaper::Reaper;
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
    let refused = blocking(move || agent.make_pid_namespace(begin + patience)).await.unwrap_err();
    assert!(refused.to_string().ends_with("not made within 0 s"), "{refused}");
    assert!((patience..patience * 100).contains(&begin.elapsed()), "{:?}", begin.elapsed());
}
