//! Many pods at once.

use std::thread;

use ravelin_tests::{Container, Containerd, Host, Pod, Run, eventually};

#[test]
fn many_pods_run_at_once_and_leave_nothing() {
    // containerd 1.6 gives the clean-up after each container five seconds, and leaves its bundle when they were not enough: with twenty pods on
    // one emulated processor they are not always.
    let count = match (Host::whole(), Host::containerd()) {
        (true, Containerd::V2_3) => 20,
        (true, Containerd::V1_6) => 8,
        (false, _) => 4,
    };
    let host = Host::alone();
    let pods: Vec<Pod<'_>> = thread::scope(|scope| {
        let starts: Vec<_> = (0..count).map(|_| scope.spawn(|| host.pod().start())).collect();
        starts.into_iter().map(|start| start.join().expect("the pod starts")).collect()
    });
    let containers: Vec<Container<'_>> = thread::scope(|scope| {
        let starts: Vec<_> =
            pods.iter().map(|pod| scope.spawn(|| pod.sh("hostname; ip -4 -o addr show eth0"))).collect();
        starts.into_iter().map(|start| start.join().expect("the container starts")).collect()
    });
    // One look at all of them: clients that keep asking would take the processors from what they ask for.
    eventually("all containers have ended", || {
        let ended = Run::crictl().args(["ps", "-a", "-q", "--no-trunc", "--state", "exited"]).ok();
        containers.iter().all(|container| ended.contains(&container.id)).then_some(())
    });
    for (pod, container) in pods.iter().zip(&containers) {
        let (address, said) = (pod.addresses()[0], container.output());
        assert!(said.contains(&address.to_string()), "{address} in {said}");
    }
    drop(containers);
    let traces: Vec<_> = pods.iter().map(Pod::traces).collect();
    thread::scope(|scope| {
        for pod in pods {
            scope.spawn(move || pod.remove());
        }
    });
    for traces in traces {
        traces.assert_closed();
    }
    host.assert_clean();
}
