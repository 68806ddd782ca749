//! The shim's own protocol, without a containerd between: what every version writes to it, a task's life in every
//! state, and what two hundred lives leave in it.

use std::time::Duration;

use containerd_shim_protos::api::{
    CloseIORequest, CreateTaskRequest, ExecProcessRequest, PauseRequest, PidsRequest, ResizePtyRequest,
    ResumeRequest, StateRequest, StatsRequest, UpdateTaskRequest,
};
use containerd_shim_protos::cgroups_v2::metrics::Metrics;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageField};
use ravelin_tests::shim::{Bootstrap, Shim, descriptors, holdings};
use ravelin_tests::{Host, Run, eventually, until};
use serde_json::json;
use ttrpc::Code;

/// Runs until it is killed, and says when it has begun.
const IDLE: &str = "echo begun; while :; do sleep 1000; done";

fn context() -> ttrpc::context::Context {
    ttrpc::context::with_duration(ravelin_tests::PATIENCE)
}

/// The code of what must not succeed.
#[track_caller]
fn code<T: std::fmt::Debug>(result: Result<T, (Code, String)>) -> Code {
    match result {
        Ok(done) => panic!("it succeeded: {done:?}"),
        Err((code, _)) => code,
    }
}

#[test]
fn every_versions_start_gets_a_shim_that_ends_when_it_is_not_needed() {
    let Some(host) = Host::shared_with_ravelin() else { return };
    for bootstrap in [Bootstrap::Nothing, Bootstrap::Options, Bootstrap::Params] {
        let shim = Shim::start(&host, bootstrap);
        let pid = shim.connect();
        assert!(pid > 1, "{bootstrap:?}");
        for service in ["grpc.health.v1.Health", "containerd.services.streaming.v1.Streaming"] {
            let (code, words) = shim.refuses(service, "Check");
            assert_eq!(code, Code::UNIMPLEMENTED, "{service}: {words}");
        }
        shim.goodbye(pid);
    }
}

#[test]
fn a_tasks_life_is_told_in_order_and_refused_out_of_order() {
    let Some(host) = Host::shared_with_ravelin() else { return };
    let shim = Shim::start(&host, Bootstrap::Params);
    assert_eq!(code(shim.state("nobody", "")), Code::NOT_FOUND);
    assert_eq!(code(shim.create("early", "exit 0")), Code::FAILED_PRECONDITION);
    shim.run_sandbox();
    assert_eq!(shim.state(&shim.id, "").as_deref(), Ok("RUNNING"));
    assert_eq!(code(shim.delete(&shim.id, "")), Code::FAILED_PRECONDITION);

    // From its creation to its deletion.
    let output = shim.create("short", "echo out; echo err >&2; exit 7").expect("a container");
    assert_eq!(shim.state("short", "").as_deref(), Ok("CREATED"));
    shim.start_process("short", "").expect("it starts");
    assert_eq!(shim.wait("short", ""), Ok(7));
    assert_eq!(output.whole(), ("out\n".to_owned(), "err\n".to_owned()));
    assert_eq!(shim.state("short", "").as_deref(), Ok("STOPPED"));
    assert_eq!(code(shim.start_process("short", "")), Code::FAILED_PRECONDITION);
    assert_eq!(code(shim.kill("short", "", 15)), Code::NOT_FOUND);
    assert_eq!(code(shim.kill("short", "", 0)), Code::NOT_FOUND);
    // The counters of the dead are asked for: containerd tells by them who was killed for memory.
    stats(&shim, "short");
    assert_eq!(shim.wait("short", ""), Ok(7), "a wait after the end");
    assert_eq!(shim.delete("short", "").expect("it can be deleted").exit_status, 7);
    assert_eq!(code(shim.delete("short", "")), Code::NOT_FOUND);
    shim.expect_events("short", &["create short", "start short", "exit short 7", "delete short"]);

    // Deleted without ever having been started. Its score says what its machine is worth to the node from then on.
    let score =
        || std::fs::read_to_string(format!("/proc/{}/oom_score_adj", shim.machine())).expect("a score");
    assert_eq!(score(), "0\n");
    let worth = |spec: &mut serde_json::Value, _: &mut CreateTaskRequest| {
        spec["process"]["oomScoreAdj"] = json!(-500);
    };
    let output = shim.create_with("never", "echo never", worth).expect("a container");
    assert_eq!(score(), "-500\n");
    assert_eq!(code(shim.create("never", "echo twice")), Code::ALREADY_EXISTS);
    shim.delete("never", "").expect("it can be deleted");
    assert_eq!(output.whole().0, "");

    // Execs in every state.
    let output = shim.create("long", IDLE).expect("a container");
    assert_eq!(code(shim.wait("nobody", "")), Code::NOT_FOUND);
    shim.start_process("long", "").expect("it starts");
    let exec = shim.exec("long", "e1", "echo in an exec; exit 3").expect("an exec");
    assert_eq!(shim.state("long", "e1").as_deref(), Ok("CREATED"));
    assert_eq!(code(shim.exec("long", "e1", "true")), Code::ALREADY_EXISTS);
    shim.start_process("long", "e1").expect("it starts");
    assert_eq!(shim.wait("long", "e1"), Ok(3));
    assert_eq!(exec.whole().0, "in an exec\n");
    shim.delete("long", "e1").expect("it can be deleted");
    let exec = shim.exec("long", "e2", "echo begun; exec sleep 1000").expect("an exec");
    shim.start_process("long", "e2").expect("it starts");
    exec.says("begun\n");
    assert_eq!(code(shim.delete("long", "e2")), Code::FAILED_PRECONDITION);
    shim.kill("long", "e2", 9).expect("it can be killed");
    assert_eq!(shim.wait("long", "e2"), Ok(137));
    assert_eq!(exec.whole().0, "begun\n");
    shim.delete("long", "e2").expect("it can be deleted");
    drop(shim.exec("long", "e3", "true").expect("an exec"));
    shim.delete("long", "e3").expect("one that was never started can be deleted");

    // Paused, resumed, limited, counted.
    pause(&shim, "long");
    assert_eq!(shim.state("long", "").as_deref(), Ok("PAUSED"));
    assert_eq!(code(shim.delete("long", "")), Code::FAILED_PRECONDITION);
    resume(&shim, "long");
    assert_eq!(shim.state("long", "").as_deref(), Ok("RUNNING"));
    let mut update = UpdateTaskRequest::new();
    update.id = "long".to_owned();
    let mut limits = Any::new();
    limits.type_url = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources".to_owned();
    limits.value = json!({ "memory": { "limit": 64 << 20 } }).to_string().into_bytes();
    update.resources = MessageField::some(limits);
    shim.tasks().update(context(), &update).expect("it can be limited");
    assert_eq!(stats(&shim, "long").memory.usage_limit, 64 << 20);
    assert_eq!(code(shim.delete("long", "")), Code::FAILED_PRECONDITION);
    output.says("begun\n");
    // As kill(2): whether it is there.
    shim.kill("long", "", 0).expect("it is there");
    assert_eq!(shim.state("long", "").as_deref(), Ok("RUNNING"));
    shim.kill("long", "", 9).expect("it can be killed");
    assert_eq!(shim.wait("long", ""), Ok(137));
    assert_eq!(output.whole().0, "begun\n");
    shim.delete("long", "").expect("it can be deleted");
    shim.expect_events(
        "long",
        &[
            "create long",
            "start long",
            "exec-added long/e1",
            "exec-started long/e1",
            "exit long/e1 3",
            "exec-added long/e2",
            "exec-started long/e2",
            "exit long/e2 137",
            "exec-added long/e3",
            "paused long",
            "resumed long",
            "exit long 137",
            "delete long",
        ],
    );

    // The kernel's kill for memory is told before the exit.
    let limited = |spec: &mut serde_json::Value, _: &mut CreateTaskRequest| {
        spec["linux"]["resources"]["memory"] = json!({ "limit": 16 << 20 });
    };
    shim.create_with("hungry", "exec tail /dev/zero", limited).expect("a container");
    shim.start_process("hungry", "").expect("it starts");
    assert_eq!(shim.wait("hungry", ""), Ok(137));
    assert!(stats(&shim, "hungry").memory_events.oom_kill > 0);
    shim.delete("hungry", "").expect("it can be deleted");
    shim.expect_events(
        "hungry",
        &["create hungry", "start hungry", "oom hungry", "exit hungry 137", "delete hungry"],
    );
    // A sandbox that is deleted before its containers takes them along, and they can be deleted afterwards.
    let output = shim.create("late", IDLE).expect("a container");
    shim.start_process("late", "").expect("it starts");
    output.says("begun\n");
    let pid = shim.connect();
    shim.end_sandbox();
    assert_eq!(shim.wait("late", ""), Ok(137));
    assert_eq!(shim.delete("late", "").expect("it can be deleted").exit_status, 137);
    shim.goodbye(pid);
    let id = shim.id.as_str();
    let events =
        [format!("create {id}"), format!("start {id}"), format!("exit {id} 137"), format!("delete {id}")];
    shim.expect_events(id, &events.each_ref().map(String::as_str));
}

#[test]
fn an_exec_stands_still_and_ends_with_its_container() {
    let Some(host) = Host::shared_with_ravelin() else { return };
    let shim = Shim::start(&host, Bootstrap::Params);
    shim.run_sandbox();
    shim.create("first", IDLE).expect("a container");
    shim.start_process("first", "").expect("it starts");

    // What is no process is refused and leaves nothing.
    let mut nonsense = ExecProcessRequest::new();
    (nonsense.id, nonsense.exec_id) = ("first".to_owned(), "e".to_owned());
    let mut half = Any::new();
    half.type_url = "types.containerd.io/opencontainers/runtime-spec/1/Process".to_owned();
    half.value = b"{\"args\": [\"true\"".to_vec();
    nonsense.spec = MessageField::some(half);
    match shim.tasks().exec(context(), &nonsense) {
        Err(ttrpc::Error::RpcStatus(status)) => {
            assert_eq!(status.code(), Code::INVALID_ARGUMENT, "{}", status.message);
        }
        other => panic!("half a process was not refused: {other:?}"),
    }
    assert_eq!(code(shim.state("first", "e")), Code::NOT_FOUND);

    // Among the processes that are listed is the one that State names.
    for id in [shim.id.as_str(), "first"] {
        let mut state = StateRequest::new();
        state.id = id.to_owned();
        let pid = shim.tasks().state(context(), &state).expect("it has a state").pid;
        let mut pids = PidsRequest::new();
        pids.id = id.to_owned();
        let listed = shim.tasks().pids(context(), &pids).expect("it has processes").processes;
        assert!(pid > 0 && listed.iter().any(|process| process.pid == pid), "{id}: {pid} in {listed:?}");
    }

    let exec = shim.exec("first", "e", "echo begun; exec sleep 1000").expect("an exec");
    shim.start_process("first", "e").expect("it starts");
    exec.says("begun\n");
    pause(&shim, "first");
    assert_eq!(shim.state("first", "e").as_deref(), Ok("PAUSED"));
    resume(&shim, "first");
    assert_eq!(shim.state("first", "e").as_deref(), Ok("RUNNING"));

    // The end of an exec is told before its container's, whichever the guest tells first: nothing says which, so it is
    // tried a few times. (And an exec may be added, and started, before its container is.)
    for id in ["first", "second", "third"] {
        if id != "first" {
            shim.create(id, IDLE).expect("a container");
            let exec = shim.exec(id, "e", "echo begun; exec sleep 1000").expect("an exec");
            // Before its container or after it, as with runc.
            let order = if id == "second" { ["e", ""] } else { ["", "e"] };
            for process in order {
                shim.start_process(id, process).expect("it starts");
            }
            exec.says("begun\n");
        }
        shim.kill(id, "", 9).expect("it can be killed");
        assert_eq!(shim.wait(id, ""), Ok(137));
        assert_eq!(shim.wait(id, "e"), Ok(137));
        shim.delete(id, "e").expect("it can be deleted");
        shim.delete(id, "").expect("it can be deleted");
        let lines = |kinds: &[&str]| kinds.iter().map(|line| line.replace("ID", id)).collect::<Vec<_>>();
        let begun: &[&str] = match id {
            "first" => {
                &["create ID", "start ID", "exec-added ID/e", "exec-started ID/e", "paused ID", "resumed ID"]
            }
            "second" => &["create ID", "exec-added ID/e", "exec-started ID/e", "start ID"],
            _ => &["create ID", "exec-added ID/e", "start ID", "exec-started ID/e"],
        };
        let ended = ["exit ID/e 137", "exit ID 137", "delete ID"];
        let expected = [lines(begun), lines(&ended)].concat();
        shim.expect_events(id, &expected.iter().map(String::as_str).collect::<Vec<_>>());
    }
    shim.remove_sandbox();
}

#[test]
fn a_tasks_streams_are_written_to_closed_and_resized() {
    let Some(host) = Host::shared_with_ravelin() else { return };
    let shim = Shim::start(&host, Bootstrap::Params);
    shim.run_sandbox();

    // Its input does not end with who wrote to it, but when containerd says so.
    let input = shim.input("cat");
    let reads = |_: &mut serde_json::Value, request: &mut CreateTaskRequest| {
        request.stdin = input.display().to_string();
    };
    let output = shim.create_with("cat", "cat; exit 6", reads).expect("a container");
    shim.start_process("cat", "").expect("it starts");
    for line in ["one line\n", "another\n"] {
        std::fs::write(&input, line).expect("it is read");
        output.says(line);
    }
    assert_eq!(shim.state("cat", "").as_deref(), Ok("RUNNING"));
    let mut close = CloseIORequest::new();
    close.id = "cat".to_owned();
    close.stdin = true;
    shim.tasks().close_io(context(), &close).expect("its input can be closed");
    assert_eq!(shim.wait("cat", ""), Ok(6));
    assert_eq!(output.whole(), ("one line\nanother\n".to_owned(), String::new()));
    shim.delete("cat", "").expect("it can be deleted");

    // A terminal has one output, and a size.
    let terminal = |spec: &mut serde_json::Value, request: &mut CreateTaskRequest| {
        spec["process"]["terminal"] = json!(true);
        request.terminal = true;
        request.stderr.clear();
    };
    let script = "trap 'stty size; exit 4' WINCH; echo begun >&2; while :; do sleep 0.1; done";
    let output = shim.create_with("terminal", script, terminal).expect("a container");
    shim.start_process("terminal", "").expect("it starts");
    output.says("begun\r\n");
    let mut resize = ResizePtyRequest::new();
    resize.id = "terminal".to_owned();
    (resize.width, resize.height) = (100, 40);
    shim.tasks().resize_pty(context(), &resize).expect("it can be resized");
    assert_eq!(shim.wait("terminal", ""), Ok(4));
    assert_eq!(output.whole().0, "begun\r\n40 100\r\n");
    shim.delete("terminal", "").expect("it can be deleted");
    shim.remove_sandbox();
}

/// A caller's patience may end, and a caller itself, while a container or a machine is made: nobody would ever hear of it.
#[test]
fn a_creation_that_nobody_wants_any_more_is_taken_down() {
    let Some(host) = Host::shared_with_ravelin() else { return };
    let shim = Shim::start(&host, Bootstrap::Params);
    shim.run_sandbox();
    let machine = shim.machine().to_string();
    let signal = |signal: &str| drop(Run::new("kill").args([signal, &machine]).ok());

    // Its caller gives up.
    signal("-STOP");
    let given_up = shim.create_within(Duration::from_secs(2), "given-up", IDLE, |_, _| {});
    assert!(given_up.is_err(), "a machine that stands still made a container");
    assert_eq!(code(shim.create("given-up", IDLE)), Code::ALREADY_EXISTS, "its id is taken until it is gone");
    signal("-CONT");
    let again = eventually("its id is free again", || match shim.create("given-up", "exit 5") {
        Err((Code::ALREADY_EXISTS, _)) => None,
        created => Some(created.expect("a container")),
    });
    shim.start_process("given-up", "").expect("it starts");
    assert_eq!(shim.wait("given-up", ""), Ok(5));
    shim.delete("given-up", "").expect("it can be deleted");
    again.whole();
    let events = ["create given-up", "start given-up", "exit given-up 5", "delete given-up"];
    shim.expect_events("given-up", &events);

    // Somebody deletes it meanwhile.
    signal("-STOP");
    let delete_while_it_is_made = || {
        std::thread::scope(|scope| {
            let creating = scope.spawn(|| shim.create("deleted", IDLE));
            let deleted = eventually("it is being made", || match shim.delete("deleted", "") {
                Err((Code::NOT_FOUND, _)) => None,
                answer => Some(answer),
            });
            // One of which the guest had heard nothing yet is gone at once.
            if let Err((code, words)) = &deleted {
                assert_eq!(*code, Code::FAILED_PRECONDITION, "{words}");
                assert!(words.contains("deleted is still being made"), "{words}");
                signal("-CONT");
            }
            let created = creating.join().expect("a thread");
            assert!(created.is_err(), "it was made though it was deleted");
            deleted.is_err()
        })
    };
    assert!((0..20).any(|_| delete_while_it_is_made()), "the guest never hears of it before it is deleted");
    assert_eq!(code(shim.delete("deleted", "")), Code::NOT_FOUND);
    shim.expect_events("deleted", &[]);
    shim.remove_sandbox();

    // The same with a machine.
    let shim = Shim::start(&host, Bootstrap::Params);
    let pid = shim.connect();
    std::thread::scope(|scope| {
        let creating = scope.spawn(|| shim.create_sandbox());
        eventually("it is being made", || match shim.kill(&shim.id, "", 9) {
            Err((Code::NOT_FOUND, _)) => None,
            answer => {
                answer.expect("what is being made can be killed");
                Some(())
            }
        });
        let created = creating.join().expect("a thread");
        assert!(created.is_err(), "it was made though it was killed");
    });
    assert_eq!(code(shim.delete(&shim.id, "")), Code::NOT_FOUND);
    shim.goodbye(pid);
    shim.expect_events(&shim.id, &[]);
}

#[test]
fn many_lives_leave_nothing_in_the_shim_and_the_machine() {
    let Some(host) = Host::shared_with_ravelin() else { return };
    let cycles = if Host::whole() { 200 } else { 10 };
    let shim = Shim::start(&host, Bootstrap::Nothing);
    shim.run_sandbox();
    let processes = [shim.connect(), shim.machine()];
    // Of the host: mounts, and processes that the shim has started.
    let on_the_host = || {
        let all = std::fs::read_to_string("/proc/self/mountinfo").expect("mounts");
        let mounts = all.lines().filter(|line| line.contains(&shim.id)).count();
        (mounts, children(processes[0]))
    };
    // What the guest's kernel could still give, in KiB: what lives of a container or an exec takes from it.
    let available = || {
        let meminfo = "exec awk '/MemAvailable/ {print $2}' /proc/meminfo";
        let output = shim.create("available", meminfo).expect("a container");
        shim.start_process("available", "").expect("it starts");
        shim.wait("available", "").expect("it ends");
        shim.delete("available", "").expect("it can be deleted");
        output.whole().0.trim().parse::<usize>().expect("a number of KiB")
    };

    let live = || {
        let output = shim.create("cycle", IDLE).expect("a container");
        shim.start_process("cycle", "").expect("it starts");
        let exec = shim.exec("cycle", "e", "exit 5").expect("an exec");
        shim.start_process("cycle", "e").expect("it starts");
        assert_eq!(shim.wait("cycle", "e"), Ok(5));
        shim.delete("cycle", "e").expect("it can be deleted");
        shim.kill("cycle", "", 9).expect("it can be killed");
        assert_eq!(shim.wait("cycle", ""), Ok(137));
        shim.delete("cycle", "").expect("it can be deleted");
        output.whole();
        exec.whole();
    };
    // What is made once and kept is made by then.
    for _ in 0..5 {
        live();
    }
    let available_before = available();
    let before = (processes.map(holdings), on_the_host());
    for _ in 0..cycles {
        live();
    }
    // The shim's threads that wait for work end after a while; the machine has up to four for each of its disks.
    const WORKERS: usize = 8;
    let settled = until(Duration::from_secs(120), || {
        let now = (processes.map(holdings), on_the_host());
        let same = now.0.iter().zip(&before.0).all(|(now, before)| {
            now.descriptors <= before.descriptors && now.threads <= before.threads + WORKERS
        });
        (same && now.1 == before.1).then_some(())
    });
    assert!(
        settled.is_some(),
        "{before:?} before, {:?} after {cycles} lives; the shim's descriptors:\n{}",
        (processes.map(holdings), on_the_host()),
        descriptors(processes[0]).join("\n")
    );
    // The machine's memory holds what the guest's page cache took: the shim's is bounded here, and the guest's from inside.
    let (before, now) = (before.0[0].anonymous_kib, holdings(processes[0]).anonymous_kib);
    assert!(now < before + 1024 + cycles * 4, "{before} KiB grew to {now} KiB in {cycles} lives");
    let available_now = available();
    assert!(
        available_now + 8192 + cycles * 16 > available_before,
        "of {available_before} KiB the guest has {available_now} after {cycles} lives"
    );
    shim.remove_sandbox();
}

/// Pause of a container.
#[track_caller]
fn pause(shim: &Shim<'_>, id: &str) {
    let mut request = PauseRequest::new();
    request.id = id.to_owned();
    shim.tasks().pause(context(), &request).expect("it can be paused");
}

/// Resume of a container.
#[track_caller]
fn resume(shim: &Shim<'_>, id: &str) {
    let mut request = ResumeRequest::new();
    request.id = id.to_owned();
    shim.tasks().resume(context(), &request).expect("it can be resumed");
}

/// How many processes have this parent.
fn children(parent: u32) -> usize {
    let of = format!("PPid:\t{parent}");
    let entries = std::fs::read_dir("/proc").expect("/proc").flatten();
    let statuses = entries.filter_map(|entry| std::fs::read_to_string(entry.path().join("status")).ok());
    statuses.filter(|status| status.lines().any(|line| line == of)).count()
}

/// A container's counters.
#[track_caller]
fn stats(shim: &Shim<'_>, id: &str) -> Box<Metrics> {
    let mut request = StatsRequest::new();
    request.id = id.to_owned();
    let stats = shim
        .tasks()
        .stats(context(), &request)
        .unwrap_or_else(|error| panic!("no statistics of {id}: {error}"));
    Box::new(Metrics::parse_from_bytes(&stats.stats.value).expect("metrics of cgroup v2"))
}
