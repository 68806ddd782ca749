use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use ravelin_vmm::control::transport;
use ravelin_vmm::control::{Answer, Command, ExitReason, MachineConfig, Message, Request};
use tokio::sync::watch;

use super::client::Client;
use super::testing::{self, program};
use super::{BootFds, Exit, Machine, MachineError, SpawnConfig, log};

fn client() -> (Client, OwnedFd, watch::Sender<Option<Exit>>) {
    let (ours, theirs) = transport::pair().unwrap();
    let (sender, receiver) = watch::channel(None);
    (Client::new(ours, receiver).unwrap(), theirs, sender)
}

fn reply(id: u64) -> Message {
    Message::Reply { id, result: Ok(Answer::Done) }
}

/// Takes `count` requests in a thread and hands them to `act`.
fn peer(socket: OwnedFd, count: usize, act: impl FnOnce(&OwnedFd, Vec<Request>) + Send + 'static) {
    std::thread::spawn(move || {
        let requests = (0..count).map(|_| transport::recv(&socket).unwrap().unwrap().message).collect();
        act(&socket, requests);
    });
}

const SOON: Duration = Duration::from_secs(5);

#[tokio::test]
async fn replies_out_of_order_reach_their_callers() {
    let (client, socket, _exit) = client();
    peer(socket, 2, |socket, requests| {
        for request in requests.iter().rev() {
            let result = match request.command {
                Command::Connect { port: 1, within_ms: 1000 } => Err("refused".to_owned()),
                _ => Ok(Answer::Done),
            };
            transport::send(socket, &Message::Reply { id: request.id, result }, &[]).unwrap();
        }
    });
    let (first, second) = tokio::join!(
        client.request("connect", Command::Connect { port: 1, within_ms: 1000 }, &[], SOON),
        client.request("connect", Command::Connect { port: 2, within_ms: 1000 }, &[], SOON),
    );
    assert!(matches!(first, Err(MachineError::Refused { message, .. }) if message == "refused"));
    assert_eq!(second.unwrap(), Answer::Done);
}

#[tokio::test]
async fn a_silent_machine_runs_into_the_deadline_and_its_late_answer_is_ignored() {
    let (client, socket, _exit) = client();
    let keep = socket.as_fd().try_clone_to_owned().unwrap();
    let result = client.request("pause", Command::Pause, &[], Duration::from_millis(20)).await;
    assert!(matches!(result, Err(MachineError::Timeout { command: "pause", .. })));
    transport::send(&keep, &reply(1), &[]).unwrap();
    transport::send(&keep, &reply(77), &[]).unwrap();
    let _first: Request = transport::recv(&socket).unwrap().unwrap().message;
    peer(socket, 1, |socket, requests| transport::send(socket, &reply(requests[0].id), &[]).unwrap());
    assert_eq!(client.request("resume", Command::Resume, &[], SOON).await.unwrap(), Answer::Done);
}

#[tokio::test]
async fn a_dead_machine_fails_every_pending_request_with_its_exit_reason() {
    let (client, socket, exit) = client();
    peer(socket, 2, move |_, _| exit.send(Some(Exit::Ended(ExitReason::Panic))).unwrap());
    let (first, second) = tokio::join!(
        client.request("pause", Command::Pause, &[], SOON),
        client.request("resume", Command::Resume, &[], SOON),
    );
    for result in [first, second] {
        let error = result.unwrap_err();
        assert!(error.to_string().starts_with("the machine has ended: the guest kernel panicked"), "{error}");
    }
    let later = client.request("pause", Command::Pause, &[], SOON).await.unwrap_err();
    assert!(matches!(later, MachineError::Ended(_)));
}

#[tokio::test]
async fn nonsense_packets_do_not_disturb_a_request() {
    let (client, socket, _exit) = client();
    peer(socket, 1, |socket, requests| {
        rustix::net::send(socket, b"not json", rustix::net::SendFlags::empty()).unwrap();
        rustix::net::send(socket, b"{\"reply\":{\"id\":1}}", rustix::net::SendFlags::empty()).unwrap();
        transport::send(socket, &reply(requests[0].id), &[]).unwrap();
    });
    assert_eq!(client.request("pause", Command::Pause, &[], SOON).await.unwrap(), Answer::Done);
}

#[tokio::test(start_paused = true)]
async fn a_machine_has_the_time_to_boot_that_it_was_given() {
    let (machine, _control) = testing::machine();
    let null = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
    let fds = BootFds {
        kvm: null(),
        kernel: null(),
        initramfs: null(),
        scratch: null(),
        taps: Vec::new(),
        console: None,
    };
    let shape = MachineConfig {
        vcpus: 1,
        memory_mib: 512,
        balloon_mib: 0,
        mac: [2, 0, 0, 0, 0, 1],
        mtu: 1500,
        tap_queues: 0,
        console: false,
        extra_cmdline: String::new(),
    };
    let began = tokio::time::Instant::now();
    let error = machine.boot(shape, fds, Duration::from_secs(7)).await.unwrap_err();
    assert_eq!(error.to_string(), "the machine did not answer its `boot` request within 7 s");
    assert_eq!(began.elapsed().as_secs(), 7);
}

#[tokio::test]
async fn a_process_that_ends_tells_every_waiter() {
    let dir = tempfile::tempdir().unwrap();
    let machine = Machine::spawn(&program(dir.path(), "exit 11"), None).await.unwrap();
    let (one, two) = tokio::join!(machine.wait(), machine.wait());
    assert_eq!((one, two), (Exit::Ended(ExitReason::Panic), Exit::Ended(ExitReason::Panic)));
    assert!(matches!(machine.pause().await, Err(MachineError::Ended(Exit::Ended(ExitReason::Panic)))));
}

#[tokio::test]
async fn the_process_has_nothing_but_its_control_socket() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let leak = std::fs::File::open("/dev/null").unwrap();
    let leaked = rustix::io::dup(&leak).unwrap();
    let script = format!("(echo \"$@\"; echo process $$; env; ls -l /proc/self/fd) > {} 2>&1", out.display());
    Machine::spawn(&program(dir.path(), &script), None).await.unwrap().wait().await;
    drop(leaked);
    let text = std::fs::read_to_string(out).unwrap();
    assert!(
        text.starts_with("--uid 1 --gid 1 --vcpus 1 --scratch-bytes 1073741824 --netns /netns\nprocess 1\n"),
        "{text}"
    );
    assert!(!text.contains("HOME="), "{text}");
    // 0, 1, 2, the control socket and the folder that is listed.
    let fds: Vec<_> = text.lines().filter(|line| line.contains(" -> ")).collect();
    assert!(fds.iter().any(|line| line.contains(" 3 -> socket:")), "{text}");
    assert!(fds.len() <= 5, "{text}");
}

#[tokio::test]
async fn dropping_the_machine_kills_its_process() {
    let dir = tempfile::tempdir().unwrap();
    let machine = Machine::spawn(&program(dir.path(), "exec sleep 1000"), None).await.unwrap();
    let pid = machine.pid();
    drop(machine);
    for _ in 0..100 {
        if !std::path::Path::new(&format!("/proc/{pid}")).exists() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("process {pid} still lives");
}

#[tokio::test]
async fn a_machine_that_keeps_talking_nonsense_is_cut_off_and_late_answers_are_none() {
    let (client, socket, _exit) = client();
    for _ in 0..100 {
        let result = client.request("pause", Command::Pause, &[], Duration::ZERO).await;
        assert!(matches!(result, Err(MachineError::Timeout { .. })));
    }
    for id in 1..=100 {
        transport::send(&socket, &reply(id), &[]).unwrap();
        tokio::task::yield_now().await;
    }
    assert!(tokio::time::timeout(Duration::from_millis(50), client.over()).await.is_err());
    for _ in 0..100 {
        rustix::net::send(&socket, b"nonsense", rustix::net::SendFlags::empty()).unwrap();
        tokio::task::yield_now().await;
    }
    tokio::time::timeout(SOON, client.over()).await.unwrap();
}

#[tokio::test]
async fn a_missing_program_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let config = SpawnConfig { vmm: "/nonexistent/vmm".into(), ..program(dir.path(), "") };
    let error = Machine::spawn(&config, None).await.unwrap_err();
    assert!(error.to_string().contains("/nonexistent/vmm"));
}

#[tokio::test]
async fn lines_are_bounded_and_printable() {
    let mut lines = Vec::new();
    let mut input = b"one\n\x1b[31mtwo\n".to_vec();
    input.extend(std::iter::repeat_n(b'x', 3000));
    log::each_line(input.as_slice(), |line| lines.push(line.to_owned())).await;
    assert_eq!(lines[..2], ["one", "[31mtwo"]);
    assert_eq!(lines[2..].iter().map(String::len).collect::<Vec<_>>(), [1024, 1024, 952]);
}

#[tokio::test]
async fn a_machine_begins_in_the_cgroup_it_is_given_and_heeds_no_shutdown_of_the_node() {
    use crate::cgroup::{Limits, PodCgroup};
    // Some places where tests run have no cgroup that can be written to.
    let Ok(cgroup) = PodCgroup::create(&format!("/ravelin-test-{}", std::process::id()), &Limits::default())
    else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let script = format!("(cat /proc/self/cgroup; grep SigIgn /proc/self/status) > {} 2>&1", out.display());
    let birthplace = cgroup.birthplace().unwrap();
    let elsewhere = birthplace.is_none();
    let config = program(dir.path(), &script);
    let machine = Machine::spawn(&config, birthplace).await.unwrap();
    machine.wait().await;
    cgroup.delete().await.unwrap();
    let text = std::fs::read_to_string(out).unwrap();
    assert!(elsewhere || text.contains(&format!("0::/ravelin-test-{}\n", std::process::id())), "{text}");
    // SIGHUP, SIGINT and SIGTERM are bits 0, 1 and 14.
    let ignored = text.lines().find_map(|line| line.strip_prefix("SigIgn:\t")).unwrap();
    assert_eq!(u64::from_str_radix(ignored, 16).unwrap() & 0x4003, 0x4003, "{text}");
}
