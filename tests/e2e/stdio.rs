//! What containers print and read.

use std::time::Duration;

use ravelin_tests::{Host, Run};

#[test]
fn stdout_and_stderr_stay_apart() {
    let host = Host::shared();
    let pod = host.common_pod();
    let container =
        pod.sh("echo to stdout; echo to stderr >&2; printf 'no line break'; printf 'nor here' >&2");
    container.ended();
    let logs = container.logs();
    assert_eq!(
        (logs.out().trim_end(), logs.err().trim_end()),
        ("to stdout\nno line break", "to stderr\nnor here")
    );
    let shown = Run::crictl().args(["logs", &container.id]).run();
    assert_eq!(shown.text().lines().next(), Some("to stdout"));
    assert_eq!(shown.stderr.lines().next(), Some("to stderr"));
    // As in any shell: the standard streams can be opened by name.
    let by_name = pod.sh("echo out > /dev/stdout; echo err > /dev/stderr; cat < /dev/stdin; echo end");
    assert_eq!(by_name.output(), "out\nend\n");
    assert_eq!(by_name.logs().err(), "err\n");
}

/// On a busy host a process's end is known before its last words have come through. (The `sleep` keeps the pipe open until
/// the container is taken down.)
#[test]
fn last_words_are_not_lost_when_many_containers_end_at_once() {
    let host = Host::shared();
    let pod = host.common_pod();
    let script = "sleep 1000 & while ! [ -e /dev/shm/end ]; do sleep 0.1; done; echo last words; exit 11";
    let count = if Host::whole() { 8 } else { 5 };
    let containers: Vec<_> = (0..count).map(|_| pod.sh(script)).collect();
    pod.sh("touch /dev/shm/end").ended();
    for container in &containers {
        assert_eq!((container.ended().code, container.logs().out().as_str()), (11, "last words\n"));
    }
}

#[test]
fn many_megabytes_reach_the_log_with_no_byte_lost() {
    let blocks = if Host::whole() { 100 } else { 20 };
    let host = Host::shared();
    let pod = host.common_pod();
    // A block is 1000 numbered lines of 1000 bytes, and each block says its own number: nothing can be lost, doubled
    // or swapped unseen.
    let container = pod.sh(&format!(
        "awk 'BEGIN {{ for (i = 0; i < 1000; i++) printf \"%0999d\\n\", i }}' > /block
         for i in $(seq 1 {blocks}); do echo block $i; cat /block; done"
    ));
    let ended = container.ended_within(Duration::from_secs(900));
    assert_eq!(ended.code, 0);
    let block: String = (0..1000).map(|line| format!("{line:0999}\n")).collect();
    let out = container.logs().stdout;
    let mut rest = out.as_slice();
    for number in 1..=blocks {
        for part in [format!("block {number}\n").as_bytes(), block.as_bytes()] {
            let length = rest.iter().zip(part).take_while(|(is, shall)| is == shall).count();
            assert_eq!(
                length,
                part.len(),
                "the log differs in block {number} at byte {}",
                out.len() - rest.len() + length
            );
            rest = rest.get(length..).unwrap_or_default();
        }
    }
    assert_eq!(rest.len(), 0, "bytes too many");
}

#[test]
fn stdin_reaches_the_container_and_its_end_too() {
    let host = Host::shared();
    let pod = host.common_pod();
    let container =
        pod.container().sh("cat; echo end of input").set("/stdin", true).set("/stdin_once", true).start();
    let mut client = container.attach();
    client.send("one\n");
    client.hear("one");
    container.says("one\n");
    client.send("two\n");
    client.close_input();
    client.hear("end of input");
    assert_eq!(container.output(), "one\ntwo\nend of input\n");
}

#[test]
fn megabytes_go_through_an_execs_stdin_and_come_back() {
    let host = Host::shared();
    let pod = host.common_pod();
    let container = pod.container().idle().start();
    let bytes: Vec<u8> = (0..4 << 20).map(|at: u32| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let back = Run::crictl().args(["exec", "-i", &container.id, "cat"]).input(bytes.clone()).run();
    assert_eq!(back.code, 0, "{}", back.stderr);
    assert!(
        back.stdout == bytes,
        "{} bytes came back, or others than the {} sent",
        back.stdout.len(),
        bytes.len()
    );
}
