use std::thread;

use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::*;
use crate::machine::testing;

fn answer(code: u32, text: &str) -> Vec<u8> {
    let length = u32::try_from(8 + text.len()).unwrap();
    [&length.to_le_bytes()[..], &code.to_le_bytes(), text.as_bytes()].concat()
}

fn control(patience: Duration) -> (Control, OwnedFd) {
    let (socket, theirs) = control::sockets(patience).unwrap();
    (Control::new(socket), theirs)
}

fn directory(name: &str) -> Directory {
    let tree = File::open("/").unwrap().into();
    Directory { identity: (name.to_owned(), 1, 2), read_only: false, tree }
}

#[test]
fn an_answer_that_came_too_late_is_not_taken_for_the_next_ones() {
    let (mut control, server) = control(Duration::from_millis(100));
    let patience = Duration::from_secs(9);
    let tree = File::open("/").unwrap().into();
    let error = control.add(0, false, &tree, patience).unwrap_err().to_string();
    assert_eq!(error, "the pod's file server did not take the volume within 9 s");
    // As long as the first is not answered, no second one is given.
    assert!(matches!(control.add(1, false, &tree, patience), Err(FileServerError::Silent(_))));
    send(&server, &answer(0, ""), SendFlags::NOSIGNAL).unwrap();
    send(&server, &answer(1, "there is a volume 2 already"), SendFlags::NOSIGNAL).unwrap();
    let error = control.add(2, false, &tree, patience).unwrap_err().to_string();
    assert_eq!(error, "the pod's file server refuses the volume: there is a volume 2 already");
    let mut orders = [0_u8; 64];
    for number in [0_u32, 2] {
        let (_, length) = recv(&server, &mut orders, RecvFlags::DONTWAIT).unwrap();
        assert_eq!((length, &orders[8..12]), (16, &number.to_le_bytes()[..]));
    }
    assert!(recv(&server, &mut orders, RecvFlags::DONTWAIT).is_err());
}

#[test]
fn what_the_server_says_is_bounded() {
    let (mut control, server) = control(Duration::from_secs(10));
    let tree = File::open("/").unwrap().into();
    let liar = thread::spawn(move || {
        for packet in [answer(1, &"x\n".repeat(500)), vec![0xff; 1000], answer(7, ""), Vec::from([0; 3])] {
            send(&server, &packet, SendFlags::NOSIGNAL).unwrap();
        }
        server
    });
    let error = control.add(0, false, &tree, Duration::ZERO).unwrap_err().to_string();
    assert!(error.len() < 600 && !error.contains('\n'), "{error}");
    for _ in 0..3 {
        let nonsense = control.add(1, false, &tree, Duration::ZERO);
        assert!(matches!(nonsense, Err(FileServerError::Socket(_))), "{nonsense:?}");
    }
    drop(liar.join().unwrap());
    assert!(matches!(control.add(2, false, &tree, Duration::ZERO), Err(FileServerError::Socket(_))));
}

/// A file server whose program is `script`, started in no cgroup.
async fn started(script: &str) -> (FileServer, u32) {
    let folder = tempfile::tempdir().unwrap();
    let (machine, control) = testing::machine();
    testing::connect_to_nobody(control);
    let settings = Settings {
        program: testing::program(folder.path(), script).vmm,
        cgroups_path: "/nobody-made-it".to_owned(),
        sandbox_id: "test".to_owned(),
        deadline: Duration::from_secs(10),
    };
    let server = FileServer::new(settings, machine);
    let (process, _) = server.launch(None).await.unwrap();
    let pid = process.pid;
    // The script must have been read before it is removed with its folder.
    let comm = format!("/proc/{pid}/comm");
    while std::fs::read_to_string(&comm).is_ok_and(|name| name == "vmm\n") {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    *server.state.lock().await = State::Started(process);
    (server, pid)
}

#[tokio::test]
async fn a_server_that_has_ended_is_told_as_such() {
    let (server, _) = started("exec sh -c 'exit 3'").await;
    for _ in 0..2 {
        let error = server.serve(directory("a")).await.unwrap_err();
        assert_eq!(
            error,
            "the pod's file server has ended (exit status 3), and the pod's file volumes with it: the pod must be made anew"
        );
    }
}

#[tokio::test]
async fn with_the_pod_the_server_ends_and_nothing_is_served_any_more() {
    let (server, pid) = started("exec sleep 1000").await;
    assert!(std::fs::exists(format!("/proc/{pid}")).unwrap());
    server.end().await;
    assert!(!std::fs::exists(format!("/proc/{pid}")).unwrap());
    assert_eq!(server.serve(directory("a")).await.unwrap_err(), "the pod has ended");
    server.end().await;
}

#[tokio::test]
async fn an_order_that_is_not_answered_does_not_hold_the_end_up() {
    // Alone it would wait for its answer ten seconds.
    let (server, pid) = started("exec sleep 1000").await;
    let (served, ()) = tokio::join!(server.serve(directory("a")), server.end());
    assert_eq!(served.unwrap_err(), "the pod has ended");
    assert!(!std::fs::exists(format!("/proc/{pid}")).unwrap());
}

#[tokio::test]
async fn a_pod_whose_server_cannot_be_started_hears_which_program_it_is() {
    let (machine, control) = testing::machine();
    testing::connect_to_nobody(control);
    let settings = Settings {
        program: "/nowhere/ravelin-fs".into(),
        cgroups_path: "/nobody-made-it".to_owned(),
        sandbox_id: "test".to_owned(),
        deadline: Duration::from_secs(10),
    };
    let server = FileServer::new(settings, machine);
    let error = chain(&server.launch(None).await.unwrap_err());
    assert_eq!(
        error,
        "cannot start the pod's file server /nowhere/ravelin-fs (configuration key `fs.path`): No such file or directory (os error 2)"
    );
    // In a cgroup that is not there nothing is started; the next volume tries again.
    let error = server.serve(directory("a")).await.unwrap_err();
    assert!(error.contains("cgroup") || error.contains("/nowhere/ravelin-fs"), "{error}");
    assert!(matches!(*server.state.lock().await, State::Idle));
}
