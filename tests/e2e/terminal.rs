//! Containers and execs on a terminal.

use ravelin_tests::{Host, Run, Session, eventually};

#[test]
fn an_exec_on_a_terminal_sees_its_size_and_each_new_size() {
    let host = Host::shared();
    let pod = host.common_pod();
    let container = pod.container().idle().start();
    let mut shell = container.exec_terminal(&["/bin/sh"], 24, 80);
    shell.send("test -t 0 && test -t 1 && test -t 2 && echo \"on a $((1+1))-way terminal\"\n");
    shell.hear("on a 2-way terminal");
    expect_size(&mut shell, "24 80");
    shell.resize(50, 132);
    expect_size(&mut shell, "50 132");
    // The line discipline works: ^C interrupts, ^D ends.
    shell.send("sleep 4321\n");
    eventually("the shell sleeps", || container.exec_sh("ps -o args").contains("\nsleep 4321").then_some(()));
    shell.send("\x03");
    eventually("the sleep is interrupted", || {
        (!container.exec_sh("ps -o args").contains("\nsleep 4321")).then_some(())
    });
    shell.send("echo \"interrupted $((40+2))\"\n");
    shell.hear("interrupted 42");
    // Only when it asks for the next line has the shell put the terminal into its own mode; a ^D that came before, while the
    // line discipline still made lines, would be lost.
    eventually("the shell prompts", || {
        shell
            .heard()
            .rsplit_once("interrupted 42")
            .is_some_and(|(_, after)| after.contains("# "))
            .then_some(())
    });
    shell.send("\x04");
    shell.finish();
    // The terminal ends with its shell, whoever else still has it open, silent or talking.
    for left_behind in ["sleep 4002 &\n", "while echo on and on; do sleep 0.05; done &\n"] {
        let mut leaving = container.exec_terminal(&["/bin/sh"], 24, 80);
        leaving.send(left_behind);
        leaving.send("echo \"left $((40+2))\"\n");
        leaving.hear("left 42");
        leaving.send("exit\n");
        leaving.finish();
    }
}

#[test]
fn a_container_on_a_terminal_is_attached_to_and_resized() {
    let host = Host::shared();
    let pod = host.common_pod();
    let container = pod.container().command(&["/bin/sh"]).set("/tty", true).set("/stdin", true).start();
    let attach = || Run::crictl().args(["attach", "-it", &container.id]);
    let mut shell = Session::terminal(&attach(), 30, 90);
    expect_size(&mut shell, "30 90");
    shell.resize(41, 141);
    expect_size(&mut shell, "41 141");
    shell.kill();
    let mut again = Session::terminal(&attach(), 20, 60);
    expect_size(&mut again, "20 60");
    again.send("exit 6\n");
    assert_eq!(container.ended().code, 6);
}

/// A size arrives a little after the terminal: asks until it is there.
#[track_caller]
fn expect_size(shell: &mut Session, size: &str) {
    eventually(&format!("the terminal is {size}; it said {:?}", shell.heard()), || {
        shell.send("stty size\n");
        shell.heard().contains(size).then_some(())
    });
}
