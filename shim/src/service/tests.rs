use std::path::Path;
use std::time::Duration;

use ravelin_policy::Size;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::agent::testing::Fake;
use crate::sandbox::testing::{pod_of, sandbox, silent_pod};
use crate::sandbox::{ContainerLimits, Pod};
use crate::stdio::Io;
use crate::task::testing::container;

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
