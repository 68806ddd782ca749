//! Requests of every form, and their replies.

use super::*;

#[test]
fn the_guest_is_told_tag_and_number_of_queues() {
    let description = Guest::new().fs.describe();
    assert_eq!(&description.config[..8], b"ravelin\0");
    assert_eq!(description.config.len(), 40);
    assert_eq!(description.config[36..], 1u32.to_le_bytes());
    assert_eq!(description.queues.len(), 2);
    assert!(description.queues.iter().all(|queue| queue.size == 512));
}

#[test]
fn a_request_reaches_the_server_and_its_reply_the_guest() {
    let (mut guest, server) = Guest::with_server();
    let room = guest.request(7, b"name\0", ROOM);
    assert_eq!(packet(&server).unwrap(), request(7, b"name\0"));
    assert!(guest.replies().is_empty());
    answer(&server, &reply(7, b"attributes"));
    assert_eq!(guest.replies(), [26]);
    assert_eq!(guest.requests.get(room, 26), reply(7, b"attributes"));
    assert!(guest.requests.interrupt.status() & 1 != 0);
}

#[test]
fn replies_come_in_any_order() {
    let (mut guest, server) = Guest::with_server();
    let rooms: Vec<u64> = (1..=5).map(|unique| guest.request(unique, b"", ROOM)).collect();
    for unique in [3, 1, 5, 4, 2] {
        answer(&server, &reply(unique, &[unique as u8; 8]));
    }
    assert_eq!(guest.replies().len(), 5);
    for (unique, room) in (1..).zip(rooms) {
        assert_eq!(guest.requests.get(room, 24), reply(unique, &[unique as u8; 8]));
    }
}

#[test]
fn a_request_without_room_for_a_reply_is_done_when_it_is_sent() {
    let (mut guest, server) = Guest::with_server();
    guest.request(3, &[1; 8], 0);
    assert_eq!(guest.replies(), [0]);
    assert_eq!(packet(&server).unwrap(), request(3, &[1; 8]));
    // So it is in the queue of high priority.
    guest.hiprio.put(OUT, &request(4, &[2; 8]));
    guest.hiprio.add(&[(OUT, 48)], &[]);
    guest.fs.serve(HIPRIO);
    assert_eq!(guest.hiprio.used(), [(0, 0)]);
    assert_eq!(packet(&server).unwrap(), request(4, &[2; 8]));
}

#[test]
fn a_request_of_the_queue_of_high_priority_is_answered_there() {
    let (mut guest, server) = Guest::with_server();
    guest.hiprio.put(OUT, &request(4, b""));
    guest.hiprio.add(&[(OUT, 40)], &[(IN, ROOM)]);
    guest.fs.serve(HIPRIO);
    answer(&server, &reply(4, b"abcd"));
    guest.run();
    assert_eq!(guest.hiprio.used(), [(0, 20)]);
    assert!(guest.requests.used().is_empty());
}

#[test]
fn malformed_requests_stay_in_the_device() {
    let (mut guest, server) = Guest::with_server();
    // Nothing to read.
    guest.requests.add(&[], &[(IN, ROOM)]);
    // Less than a header.
    guest.requests.add(&[(OUT, 39)], &[(IN + 0x1000, ROOM)]);
    // Not as long as it says.
    guest.requests.put(OUT + 0x1000, &request(3, b"abc"));
    guest.requests.add(&[(OUT + 0x1000, 44)], &[(IN + 0x2000, ROOM)]);
    guest.requests.add(&[(OUT + 0x1000, 42)], &[]);
    // No room for a reply's header.
    guest.requests.put(OUT + 0x2000, &request(4, b""));
    guest.requests.add(&[(OUT + 0x2000, 40)], &[(IN + 0x3000, 15)]);
    // Nothing at all: one descriptor of length 0.
    guest.requests.add(&[(OUT, 0)], &[]);
    guest.fs.serve(REQUESTS);
    assert_eq!(guest.replies(), [16, 16, 16, 0, 0, 0]);
    for room in [IN, IN + 0x1000, IN + 0x2000] {
        assert_eq!(guest.error_at(room), (16, -libc::EINVAL, 0));
    }
    assert_eq!(packet(&server), None);
}

#[test]
fn a_number_that_is_waiting_already_is_refused() {
    let (mut guest, server) = Guest::with_server();
    let first = guest.request(1, b"a", ROOM);
    let second = guest.request(1, b"b", ROOM);
    assert_eq!(guest.replies(), [16]);
    assert_eq!(guest.error_at(second), (16, -libc::EINVAL, 1));
    answer(&server, &reply(1, b"ok"));
    assert_eq!(guest.replies(), [18]);
    assert_eq!(guest.error_at(first), (18, 0, 1));
    // Afterwards it is free again.
    guest.request(1, b"c", ROOM);
    answer(&server, &reply(1, b""));
    assert_eq!(guest.replies(), [16]);
}

#[test]
fn headers_may_lie_in_several_descriptors() {
    let (mut guest, server) = Guest::with_server();
    let bytes = request(0x0102_0304_0506_0708, b"abcdefgh");
    let mut pieces = Vec::new();
    for (number, part) in bytes.chunks(11).enumerate() {
        let at = OUT + 0x100 * number as u64;
        guest.requests.put(at, part);
        pieces.push((at, part.len() as u32));
    }
    let room = [(IN, 5), (IN + 0x100, 6), (IN + 0x200, 7), (IN + 0x300, 100)];
    guest.requests.add(&pieces, &room);
    guest.fs.serve(REQUESTS);
    assert_eq!(packet(&server).unwrap(), bytes);
    let sent = reply(0x0102_0304_0506_0708, b"12345678");
    answer(&server, &sent);
    assert_eq!(guest.replies(), [24]);
    let got: Vec<u8> =
        room.iter().flat_map(|(at, length)| guest.requests.get(*at, *length as usize)).take(24).collect();
    assert_eq!(got, sent);
}

/// Lets a socket carry messages of full length; false if this process may not.
fn widen(socket: &OwnedFd) -> bool {
    let bytes: libc::c_int = 4 << 20;
    // SAFETY: the option takes an int, which lives here.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_SNDBUFFORCE,
            (&raw const bytes).cast(),
            size_of::<libc::c_int>() as u32,
        )
    };
    result == 0
}

#[test]
fn messages_of_one_mebibyte_pass_both_ways() {
    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::NONBLOCK, None).unwrap();
    // Without the privilege, as long as they may be.
    let length = if widen(&ours) && widen(&theirs) { 1 << 20 } else { 128 << 10 };
    let mut guest = Guest::new();
    guest.attach_socket(theirs).unwrap();
    let data: Vec<u8> = (0..length).map(|number: u32| (number >> 8) as u8).collect();
    let write = request(1, &[&[0; 40][..], &data].concat());
    guest.requests.put(OUT, &write);
    // In pieces that begin anywhere.
    guest.requests.add(&[(OUT, 80), (OUT + 80, length)], &[(IN, ROOM)]);
    guest.fs.serve(REQUESTS);
    assert_eq!(packet(&ours).unwrap(), write);
    answer(&ours, &reply(1, &[0; 8]));
    assert_eq!(guest.replies(), [24]);

    guest.requests.put(OUT, &request(2, &[0; 40]));
    guest.requests.add(&[(OUT, 80)], &[(IN, 16), (IN + 0x1000, length)]);
    guest.fs.serve(REQUESTS);
    packet(&ours).unwrap();
    answer(&ours, &reply(2, &data));
    assert_eq!(guest.replies(), [length + 16]);
    assert_eq!(guest.requests.get(IN + 0x1000, length as usize), data);
}

#[test]
fn a_request_that_the_socket_cannot_carry_fails_alone() {
    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::NONBLOCK, None).unwrap();
    sockopt::set_socket_send_buffer_size(&theirs, 4096).unwrap();
    let mut guest = Guest::new();
    guest.attach_socket(theirs).unwrap();
    guest.requests.put(OUT, &request(1, &[0; 100_000]));
    guest.requests.add(&[(OUT, 100_040)], &[(IN, ROOM)]);
    guest.fs.serve(REQUESTS);
    assert_eq!(guest.replies(), [16]);
    assert_eq!(guest.error_at(IN), (16, -libc::EMSGSIZE, 1));
    guest.request(2, b"", ROOM);
    answer(&ours, &reply(2, b""));
    assert_eq!(guest.replies(), [16]);
}

/// Lets the device hear what happens until `over` holds.
fn wait_until(guest: &mut Guest, mut over: impl FnMut(&mut Guest) -> bool) {
    let begin = std::time::Instant::now();
    while !over(guest) {
        assert!(begin.elapsed() < std::time::Duration::from_secs(20));
        for event in guest.poller.wait(Some(1000)).unwrap() {
            guest.fs.event(event.token, event.readiness);
        }
    }
}

#[test]
fn a_request_for_which_the_node_has_no_memory_is_sent_again() {
    let (mut guest, server) = Guest::with_server();
    let connection = guest.fs.server.as_mut().unwrap();
    for errno in [Errno::NOBUFS, Errno::NOMEM] {
        let sent = connection.not_sent(errno.into());
        assert!(matches!(sent, Ok(Sent::NoMemory(number)) if number == errno.raw_os_error()), "{sent:?}");
    }
    guest.request(1, b"first", ROOM);
    assert_eq!(packet(&server).unwrap(), request(1, b"first"));
    assert!(guest.fs.patience.put_off(REQUESTS));
    guest.request(2, b"second", ROOM);
    assert!(packet(&server).is_none(), "sent in the pause");
    // Who waits for a reply gets it meanwhile, and that does not end the pause.
    answer(&server, &reply(1, b""));
    guest.fs.event(SERVER, crate::event::Readiness { readable: true, writable: false, closed: false });
    assert_eq!(guest.requests.used().len(), 1);
    assert!(guest.fs.patience.is_pausing() && packet(&server).is_none());
    let mut sent = None;
    wait_until(&mut guest, |_| {
        sent = packet(&server);
        sent.is_some()
    });
    assert_eq!(sent.unwrap(), request(2, b"second"));
}

#[test]
fn a_request_is_not_sent_again_for_ever() {
    let (mut guest, server) = Guest::with_server();
    let mut tries = 0;
    while guest.fs.patience.put_off(REQUESTS) {
        tries += 1;
        wait_until(&mut guest, |guest| !guest.fs.patience.is_pausing());
    }
    assert_eq!(tries, 50);
    // The next one of the queue, and the other queue's, have as long.
    assert!(guest.fs.patience.put_off(HIPRIO));
    wait_until(&mut guest, |guest| !guest.fs.patience.is_pausing());
    guest.request(1, b"", ROOM);
    assert!(packet(&server).is_some() && guest.fs.patience.put_off(REQUESTS));
    // A server that dies in a pause leaves nobody waiting.
    let room = guest.request(2, b"", ROOM);
    drop(server);
    assert_eq!(guest.replies(), [16, 16]);
    assert_eq!(guest.error_at(room), (16, EIO, 2));
}

#[test]
fn requests_wait_in_their_queue_while_the_socket_is_full() {
    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::NONBLOCK, None).unwrap();
    sockopt::set_socket_send_buffer_size(&theirs, 4096).unwrap();
    let mut guest = Guest::new();
    guest.attach_socket(theirs).unwrap();
    for unique in 1..=7 {
        guest.request(unique, &[unique as u8; 3000], ROOM);
    }
    let before = guest.fs.waiting.reply_bytes(7);
    assert_eq!(before, None, "some must wait for the socket");
    let mut order = Vec::new();
    for _ in 0..100 {
        guest.run();
        let Some(bytes) = packet(&ours) else { break };
        assert_eq!(bytes.len(), 3040);
        order.push(bytes[REQUEST_HEADER]);
        answer(&ours, &reply(u64::from(bytes[REQUEST_HEADER]), b""));
    }
    assert_eq!(order, [1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(guest.replies().len(), 7);
}

#[test]
fn work_is_done_in_turns() {
    let (mut guest, server) = Guest::with_server();
    let driver = |guest: &mut Guest, first: u64, count: u64| {
        for unique in first..first + count {
            let at = OUT + unique % 16 * 0x1000;
            guest.requests.put(at, &request(unique, b""));
            guest.requests.add(&[(at, 40)], &[]);
        }
    };
    for turn in 0..3 {
        driver(&mut guest, 1 + turn * u64::from(SIZE), SIZE.into());
        guest.fs.serve(REQUESTS);
        assert_eq!(guest.requests.used().len(), usize::from(BUDGET));
        assert!(guest.requests.was_notified(), "what may have come meanwhile is left for the next turn");
        assert_eq!(std::iter::from_fn(|| packet(&server)).count(), usize::from(BUDGET));
    }
}

#[test]
fn a_guest_with_more_chains_than_places_has_broken_the_queue() {
    let (mut guest, server) = Guest::with_server();
    guest.requests.put(OUT, &request(0, b""));
    let head = guest.requests.add(&[(OUT, 40)], &[(IN, ROOM)]);
    guest.fs.serve(REQUESTS);
    // The same chain again and again, with another number each time.
    let sent = Rc::new(Cell::new(1));
    while !guest.requests.interrupt.is_reset_needed() {
        assert!(sent.get() <= u64::from(QUEUE_SIZE), "a queue has only so many places");
        guest.requests.put(OUT + 8, &sent.get().to_le_bytes());
        guest.requests.offer(head);
        guest.fs.serve(REQUESTS);
        while packet(&server).is_some() {}
        sent.set(sent.get() + 1);
    }
    assert_eq!(sent.get(), u64::from(QUEUE_SIZE) + 1);
    // The server's end is nothing to such a queue, and a reset heals it.
    drop(server);
    guest.run();
    guest.fs.reset();
}
