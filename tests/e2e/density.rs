//! Many pods at once.

use std::thread;

use ravelin_tests::{Container, Host, Pod, Run, eventually};

/// Pods that start at the same time. While many machines take turns on the emulated host's one processor, its emulator
/// now and then gives a guest's processor flags that no processor can have, which ends that guest's kernel.
const AT_A_TIME: usize = 4;

#[test]
fn twenty_pods_run_at_once_and_leave_nothing() {
    let host = Host::alone();
    let mut pods: Vec<Pod<'_>> = Vec::new();
    while pods.len() < 20 {
        pods.extend(thread::scope(|scope| {
            let starts: Vec<_> = (0..AT_A_TIME).map(|_| scope.spawn(|| host.pod().start())).collect();
            starts.into_iter().map(|start| start.join().expect("the pod starts")).collect::<Vec<_>>()
        }));
    }
    let containers: Vec<Container<'_>> = thread::scope(|scope| {
        let starts: Vec<_> =
            pods.iter().map(|pod| scope.spawn(|| pod.sh("hostname; ip -4 -o addr show eth0"))).collect();
        starts.into_iter().map(|start| start.join().expect("the container starts")).collect()
    });
    // One look at all of them: twenty clients that keep asking would take the processors from what they ask for.
    eventually("all containers have ended", || {
        let ended = Run::crictl().args(["ps", "-a", "-q", "--no-trunc", "--state", "exited"]).ok();
        containers.iter().all(|container| ended.contains(&container.id)).then_some(())
    });
    for (pod, container) in pods.iter().zip(&containers) {
        let (address, said) = (pod.addresses()[0], container.output());
        assert!(said.contains(&address.to_string()), "{address} in {said}");
    }
    drop(containers);
    thread::scope(|scope| {
        for pod in pods {
            scope.spawn(move || pod.remove());
        }
    });
}
