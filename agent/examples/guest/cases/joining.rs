//! What a container sees of a process that is about to become one of its own.

use serde_json::json;
use tokio::io::AsyncReadExt;

use crate::container::Container;
use crate::host::{Client, process, spec};

/// The container may trace, so that nothing of `/proc` is closed to it, and looks at every process from its first moment: none
/// leads out of the container, by its root, working directory, program or descriptors.
pub async fn execs_show_nothing_of_the_agent(client: Client) {
    const EXECS: usize = 60;
    let mut watcher = spec(&["watcher"]);
    for set in ["bounding", "effective", "permitted"] {
        let all = watcher["process"]["capabilities"][set].as_array_mut().unwrap();
        all.extend([json!("CAP_SYS_PTRACE"), json!("CAP_SYS_ADMIN")]);
    }
    let mut container = Container::create(&client, "watch", watcher).await.unwrap();
    container.start().await;
    let mut word = [0; 9];
    container.streams.stdout.read_exact(&mut word).await.unwrap();
    assert_eq!(&word, b"watching\n");
    for number in 0..EXECS {
        let id = format!("e{number}");
        let terminal = number % 4 == 0;
        let mut streams =
            container.exec_with(&id, process(&["/bin/busybox", "true"]), terminal).await.unwrap();
        streams.out().await;
        assert_eq!(container.wait(&id).await.exit_status, 0);
    }
    container.kill("", 15, false).await.unwrap();
    let said = container.streams.out().await;
    container.end().await;
    println!("        {EXECS} execs: {}", said.trim().replace('\n', "\n        "));
    let mut lines = said.lines();
    let early: usize = lines.next().unwrap().strip_prefix("early ").unwrap().parse().unwrap();
    assert!(early > 0, "it saw none before it ran its program");
    assert_eq!(lines.next(), None, "it found something");
}
