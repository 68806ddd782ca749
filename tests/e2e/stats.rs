//! What the node is told of a container's use.

use ravelin_tests::{Containerd, Host, Run, eventually};
use serde_json::Value;

#[test]
fn statistics_move_with_what_the_container_does() {
    let host = Host::shared();
    let pod = host.common_pod();
    let container = pod.sh("while :; do :; done");
    let idle = pod.container().idle().start();
    // A container is said to have used nothing until its guest has answered for the first time.
    let first = eventually("the container has memory", || {
        let now = stats(&container.id);
        (number(&now, "/memory/workingSetBytes/value") > 0).then_some(now)
    });
    // containerd's own answer for a container without a limit, whatever runs it.
    assert_eq!(number(&first, "/memory/availableBytes/value"), 0, "{first}");
    eventually("the processor time grows", || {
        let now = stats(&container.id);
        (number(&now, "/cpu/usageCoreNanoSeconds/value")
            > number(&first, "/cpu/usageCoreNanoSeconds/value") + 500_000_000)
            .then_some(())
    });
    let before = eventually("the idle container has memory", || {
        let now = stats(&idle.id);
        (number(&now, "/memory/usageBytes/value") > 0).then_some(now)
    });
    idle.exec_sh("dd if=/dev/zero of=/dev/shm/thirty-megabytes bs=1M count=30");
    eventually("the memory grows", || {
        let now = stats(&idle.id);
        let grown = number(&now, "/memory/usageBytes/value") - number(&before, "/memory/usageBytes/value");
        (grown > 25_000_000).then_some(())
    });
    if Host::containerd() == Containerd::V2_3 {
        let pod_stats = Run::crictl().args(["statsp", "-o", "json", "--id", &pod.id]).json();
        assert!(number(&pod_stats["stats"][0], "/linux/cpu/usageCoreNanoSeconds/value") > 0, "{pod_stats}");
        assert!(number(&pod_stats["stats"][0], "/linux/memory/workingSetBytes/value") > 0, "{pod_stats}");
    }
    container.stop(std::time::Duration::ZERO);
    container.ended();
}

#[track_caller]
fn stats(id: &str) -> Value {
    eventually("containerd has statistics of the container", || {
        let all = Run::crictl().args(["stats", "-a", "-o", "json", "--id", id]).json();
        let mine = all["stats"][0].clone();
        (!mine["cpu"].is_null() && !mine["memory"].is_null()).then_some(mine)
    })
}

/// A number of CRI's JSON, where 64-bit integers are strings.
#[track_caller]
fn number(of: &Value, pointer: &str) -> i64 {
    let value = of.pointer(pointer).unwrap_or_else(|| panic!("no {pointer} in {of}"));
    value.as_i64().or_else(|| value.as_str()?.parse().ok()).unwrap_or_else(|| panic!("{pointer} is {value}"))
}
