//! Servers that come, die, and break the protocol.

use super::*;

#[test]
fn without_a_server_every_request_fails_at_once() {
    let mut guest = Guest::new();
    let room = guest.request(9, b"", ROOM);
    guest.request(10, b"forget", 0);
    assert_eq!(guest.replies(), [16, 0]);
    assert_eq!(guest.error_at(room), (16, EIO, 9));
}

#[test]
fn a_server_that_dies_leaves_nobody_waiting_and_makes_place_for_another() {
    let (mut guest, server) = Guest::with_server();
    let rooms: Vec<u64> = (1..=4).map(|unique| guest.request(unique, b"", ROOM)).collect();
    // What it said last still counts.
    answer(&server, &reply(2, b"done"));
    drop(server);
    assert_eq!(guest.replies().len(), 4);
    let errors: Vec<i32> = rooms.iter().map(|room| guest.error_at(*room).1).collect();
    assert_eq!(errors, [EIO, 0, EIO, EIO]);
    let room = guest.request(5, b"", ROOM);
    assert_eq!(guest.replies(), [16]);
    assert_eq!(guest.error_at(room), (16, EIO, 5));

    let server = guest.attach().unwrap();
    guest.request(6, b"", ROOM);
    answer(&server, &reply(6, b""));
    assert_eq!(guest.replies(), [16]);
}

#[test]
fn what_a_server_said_last_counts_when_its_death_is_met_by_a_request() {
    let (mut guest, server) = Guest::with_server();
    let answered = guest.request(1, b"", ROOM);
    answer(&server, &reply(1, b"done"));
    drop(server);
    let failed = guest.request(2, b"", ROOM);
    assert_eq!(guest.replies(), [20, 16]);
    assert_eq!(guest.error_at(answered).1, 0);
    assert_eq!(guest.error_at(failed), (16, EIO, 2));
}

#[test]
fn a_second_server_is_refused_while_the_first_lives() {
    let (mut guest, server) = Guest::with_server();
    assert!(guest.attach().unwrap_err().contains("has a server already"));
    guest.request(1, b"", ROOM);
    answer(&server, &reply(1, b""));
    assert_eq!(guest.replies(), [16]);
    drop(server);
    // In the same turn as the end of the first.
    assert!(guest.attach().is_ok());
}

#[test]
fn what_is_no_socket_is_refused() {
    let mut guest = Guest::new();
    let error = guest.attach_socket(tempfile::tempfile().unwrap().into()).unwrap_err();
    assert!(error.contains("Cannot wait for the file server's socket"), "{error}");
}

#[test]
fn a_server_that_breaks_the_protocol_is_given_up() {
    let mut short_length = reply(1, b"data");
    short_length[0] -= 1;
    let mut long_length = reply(1, b"");
    long_length[..4].copy_from_slice(&u32::MAX.to_le_bytes());
    let mut positive = reply(1, b"");
    positive[4..8].copy_from_slice(&5i32.to_le_bytes());
    let mut impossible = reply(1, b"");
    impossible[4..8].copy_from_slice(&i32::MIN.to_le_bytes());
    let too_long = reply(1, &[7; ROOM as usize - 15]);
    for wrong in [
        &[][..],
        &[0; 15],
        &short_length,
        &long_length,
        &positive,
        &impossible,
        &too_long,
        &reply(2, b"unknown"),
        &[&reply(1, b"")[..], &[0; 4096]].concat(),
    ] {
        let (mut guest, server) = Guest::with_server();
        let room = guest.request(1, b"", ROOM);
        answer(&server, wrong);
        assert_eq!(guest.replies(), [16], "{wrong:?}");
        assert_eq!(guest.error_at(room), (16, EIO, 1), "{wrong:?}");
        assert!(guest.requests.get(room + 16, 4080).iter().all(|byte| *byte == 0));
        assert!(hung_up(&server));
        assert!(guest.attach().is_ok());
    }
}

#[test]
fn a_reply_that_nobody_waits_for_is_the_servers_mistake() {
    let (mut guest, server) = Guest::with_server();
    answer(&server, &reply(0, b""));
    guest.run();
    assert!(hung_up(&server));
    // The same reply twice.
    let server = guest.attach().unwrap();
    guest.request(1, b"", ROOM);
    answer(&server, &reply(1, b""));
    answer(&server, &reply(1, b""));
    assert_eq!(guest.replies(), [16]);
    assert!(hung_up(&server));
}

/// Sends a request of the protocol and waits for its reply: its error, and what follows its header.
fn ask(guest: &mut Guest, opcode: u32, node: u64, body: &[u8], data: u32) -> (i32, Vec<u8>) {
    let mut bytes = request(guest.count, body);
    guest.count += 1;
    bytes[4..8].copy_from_slice(&opcode.to_le_bytes());
    bytes[16..24].copy_from_slice(&node.to_le_bytes());
    guest.requests.put(OUT, &bytes);
    let room = 16 + data;
    guest.requests.add(&[(OUT, 40), (OUT + 40, body.len() as u32)], &[(IN, 16), (IN + 0x1000, room - 16)]);
    guest.fs.serve(REQUESTS);
    for _ in 0..1000 {
        if let [length] = guest.replies()[..] {
            let data = guest.requests.get(IN + 0x1000, length as usize - 16);
            return (guest.error_at(IN).1, data);
        }
        for event in guest.poller.wait(Some(20)).unwrap() {
            guest.fs.event(event.token, event.readiness);
        }
    }
    panic!("the server did not answer");
}

#[test]
fn the_file_server_serves_a_guest() {
    use ravelin_fs::message::abi::{ENTRY_OUT, op};
    let tree = tempfile::tempdir().unwrap();
    let (theirs, ours) = ravelin_fs::control::request_sockets().unwrap();
    let data = ravelin_fs::message::data_bytes(sockopt::socket_send_buffer_size(&ours).unwrap());
    let directory = std::fs::File::open(tree.path()).unwrap();
    let serving = std::thread::spawn(move || {
        let descriptors: OwnedFd = std::fs::File::open("/proc/self/fd").unwrap().into();
        ravelin_fs::worker::prepare(&descriptors).unwrap();
        ravelin_fs::worker::make_ready(&ours).unwrap();
        let server = ravelin_fs::server::Server::new(descriptors);
        server.add_volume(0, false, directory.into()).unwrap();
        ravelin_fs::worker::serve(&ours, &server, data).unwrap();
    });
    let mut guest = Guest::new();
    guest.attach_socket(theirs).unwrap();
    let numbers =
        |numbers: &[u32]| numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<_>>();
    let number_at = |bytes: &[u8], at: usize| u64::from_le_bytes(*bytes[at..].first_chunk().unwrap());
    let (error, init) = ask(&mut guest, op::INIT, 0, &numbers(&[7, 41, 0, u32::MAX, u32::MAX]), 64);
    assert_eq!((error, init.len()), (0, 64));
    let (_, entry) = ask(&mut guest, op::LOOKUP, 1, b"0\0", 128);
    let create = [numbers(&[2, 0o600, 0, 0]), b"file\0".to_vec()].concat();
    let (_, entry) = ask(&mut guest, op::CREATE, number_at(&entry, 0), &create, 144);
    let (node, handle) = (number_at(&entry, 0), number_at(&entry, ENTRY_OUT));
    let contents: Vec<u8> = (0..data).map(|number| (number >> 10) as u8).collect();
    let at_start = [&handle.to_le_bytes()[..], &[0; 8], &(data as u32).to_le_bytes(), &[0; 20]].concat();
    let (error, _) = ask(&mut guest, op::WRITE, node, &[&at_start[..], &contents].concat(), 8);
    assert_eq!(error, 0);
    let (error, read) = ask(&mut guest, op::READ, node, &at_start, data as u32);
    assert!(error == 0 && read == contents);
    assert_eq!(ask(&mut guest, op::LOOKUP, node, b"x\0", 128).0, -libc::ENOTDIR);
    assert!(std::fs::read(tree.path().join("file")).unwrap() == contents);
    guest.fs.reset();
    serving.join().unwrap();
}

#[test]
fn requests_that_wait_for_a_full_socket_fail_when_the_server_dies() {
    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::NONBLOCK, None).unwrap();
    sockopt::set_socket_send_buffer_size(&theirs, 4096).unwrap();
    let mut guest = Guest::new();
    guest.attach_socket(theirs).unwrap();
    for unique in 1..=7 {
        guest.request(unique, &[0; 3000], ROOM);
    }
    drop(ours);
    assert_eq!(guest.replies(), [16; 7]);
}

#[test]
fn a_reset_closes_the_connection_and_touches_no_memory_afterwards() {
    let (mut guest, server) = Guest::with_server();
    let room = guest.request(1, b"", ROOM);
    guest.request(2, b"", ROOM);
    answer(&server, &reply(1, b"late"));
    guest.fs.reset();
    assert_eq!(guest.fs.in_flight(), 0);
    assert!(guest.replies().is_empty());
    assert_eq!(guest.requests.get(room, 20), [0; 20]);
    assert!(hung_up(&server));
    // The next driver gets a server of its own.
    guest.requests = Driver::at(&guest.requests.memory, 0x30_0000);
    guest.activate();
    let server = guest.attach().unwrap();
    guest.request(1, b"", ROOM);
    answer(&server, &reply(1, b""));
    assert_eq!(guest.replies(), [16]);
}

#[test]
fn a_server_that_comes_before_the_driver_is_kept() {
    let memory = memory::allocate(64).unwrap();
    let mut guest = Guest::new();
    guest.fs.reset();
    let server = guest.attach().unwrap();
    guest.requests = Driver::at(&memory, 0x30_0000);
    guest.hiprio = Driver::at(&memory, 0x10_0000);
    guest.activate();
    guest.request(1, b"", ROOM);
    answer(&server, &reply(1, b""));
    assert_eq!(guest.replies(), [16]);
}
