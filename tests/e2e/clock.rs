//! What time it is in a pod.

use std::time::SystemTime;

use ravelin_tests::{Container, Host, Run, eventually};

#[test]
fn a_pods_clock_follows_the_hosts() {
    if !Host::owns_its_clock() {
        println!("left out: it sets the host's clock, which is this machine's");
        return;
    }
    // Everybody on the host sees its clock jump.
    let host = Host::alone();
    let pod = host.pod().start();
    let container = pod.container().idle().start();
    agrees(&container);
    for step in [1000, -1000] {
        let wanted = host_seconds() + step;
        Run::new("date").args(["-s", &format!("@{wanted}")]).ok();
        agrees(&container);
        let later = pod.container().idle().start();
        agrees(&later);
    }
}

/// Waits until the container and the host say the same time, give or take what asking takes.
#[track_caller]
fn agrees(container: &Container<'_>) {
    eventually("the container has the host's time", || {
        let before = host_seconds();
        let said: i64 = container.exec_sh("date +%s").parse().expect("a number");
        (before - 2..=host_seconds() + 2).contains(&said).then_some(())
    });
}

fn host_seconds() -> i64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("a clock after 1970");
    i64::try_from(now.as_secs()).expect("a clock of our time")
}
