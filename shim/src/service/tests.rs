use std::path::Path;
use std::time::Duration;

use ravelin_policy::Size;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::agent::testing::Fake;
use crate::sandbox::Pod;
use crate::sandbox::testing::{pod_of, sandbox, silent_pod};
use crate::stdio::Io;
use crate::task::testing::container;

const SIZE: Size = Size { vcpus: 1, cpu_millis: 1000, memory_mib: 512 };

fn service() -> Service {
    let directory = StateDir::new(Path::new("/nonexistent"), "s");
    Service::new(Config::default(), Publisher::start(None, "k8s.io"), directory, State::default())
}

fn stopped(pod: &Arc<Pod>) -> Entry<Container> {
    let container = container(pod, Io::default(), Asked::default());
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

    let alive = Entry::Ready(container(&pod, Io::default(), Asked::default()));
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
    let had = Asked { cpu_millis: 500, memory_bytes: 256 << 20, unbounded: false };
    let lower = Asked { cpu_millis: 400, memory_bytes: 128 << 20, ..had };
    // Neither sandbox has a cgroup, so that the first has no memory to give back, and the second no CPU time.
    for size in [SIZE, Size { cpu_millis: 500, ..SIZE }] {
        let fake = Fake::default();
        let pod = Arc::new(pod_of(&fake).await);
        let container = container(&pod, Io::default(), had);
        let service = service();
        service.tasks().sandbox = Entry::Ready(sandbox(&pod, size));
        service.update(&container, lower.as_limits()).await.unwrap_err();
        let updates: Vec<_> = fake.updates().into_iter().map(|update| update.resources.to_vec()).collect();
        assert_eq!(updates, [lower.as_limits(), had.as_limits()]);
        assert_eq!(container.asked(), had);
    }
}
