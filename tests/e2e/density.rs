//! Many pods at once.

use std::thread;

use ravelin_tests::Host;

#[test]
fn twenty_pods_run_at_once_and_leave_nothing() {
    let host = Host::alone();
    let pods: Vec<_> = thread::scope(|scope| {
        let starts: Vec<_> = (0..20).map(|_| scope.spawn(|| host.pod().start())).collect();
        starts.into_iter().map(|start| start.join().expect("the pod starts")).collect()
    });
    thread::scope(|scope| {
        let outputs: Vec<_> = pods
            .iter()
            .map(|pod| {
                scope
                    .spawn(move || (pod.addresses()[0], pod.sh("hostname; ip -4 -o addr show eth0").output()))
            })
            .collect();
        for output in outputs {
            let (address, said) = output.join().expect("the container runs");
            assert!(said.contains(&address.to_string()), "{address} in {said}");
        }
    });
    thread::scope(|scope| {
        for pod in pods {
            scope.spawn(move || pod.remove());
        }
    });
}
