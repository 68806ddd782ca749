//! Attaching to a running container.

use ravelin_tests::Host;

#[test]
fn a_client_attaches_detaches_and_attaches_again() {
    let host = Host::shared();
    let pod = host.common_pod();
    let script = "while read line; do echo \"got $line\"; echo \"err $line\" >&2; done";
    let container = pod.container().sh(script).set("/stdin", true).start();

    let mut first = container.attach();
    first.send("one\n");
    first.hear("got one");
    first.hear("err one");
    first.kill();

    let mut second = container.attach();
    let mut onlooker = container.attach();
    second.send("two\n");
    second.hear("got two");
    // Whoever is attached hears the same; whether the onlooker came before the line or not, it hears the next.
    second.send("three\n");
    second.hear("got three");
    onlooker.send("four\n");
    onlooker.hear("got four");
    second.hear("got four");
    second.kill();
    onlooker.kill();

    container.says("got four\n");
    assert_eq!(container.logs().out(), "got one\ngot two\ngot three\ngot four\n");
    assert_eq!(container.logs().err(), "err one\nerr two\nerr three\nerr four\n");
    assert_eq!(container.state(), "CONTAINER_RUNNING");
}
