use std::cell::Cell;
use std::os::fd::AsRawFd;
use std::rc::Rc;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair, sockopt,
};

use super::message::REQUEST_HEADER;
use super::*;
use crate::event::Poller;
use crate::machine::memory;
use crate::virtio::testing::{Driver, SIZE};

const HIPRIO: usize = 0;
const REQUESTS: usize = 1;
/// Where requests and the room for their replies are in guest memory, 4 KiB each.
const OUT: u64 = 0x40_0000;
const IN: u64 = 0x80_0000;
const ROOM: u32 = 256;

/// A device, its event loop and the guest's driver, all in one thread.
struct Guest {
    fs: Fs,
    poller: Poller,
    commands: Arc<Mailbox<Attach>>,
    hiprio: Driver,
    requests: Driver,
    count: u64,
}

impl Guest {
    fn new() -> Self {
        let memory = memory::allocate(64).unwrap();
        let commands = Mailbox::new().unwrap();
        let mut fs = Fs::new(Arc::clone(&commands));
        let poller = Poller::new().unwrap();
        fs.attach(poller.registrar(0)).unwrap();
        let mut guest = Self {
            fs,
            poller,
            commands,
            hiprio: Driver::at(&memory, 0x10_0000),
            requests: Driver::at(&memory, 0x20_0000),
            count: 0,
        };
        guest.activate();
        guest
    }

    /// One whose device has a server.
    fn with_server() -> (Self, OwnedFd) {
        let mut guest = Self::new();
        let server = guest.attach().unwrap();
        (guest, server)
    }

    fn activate(&mut self) {
        let spec = self.fs.describe().queues[REQUESTS];
        self.fs.activate(0, vec![Some(self.hiprio.queue()), Some(self.requests.queue_as(spec))]);
    }

    /// Gives the device a server; its end of the connection.
    fn attach(&mut self) -> Result<OwnedFd, String> {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::NONBLOCK, None).unwrap();
        self.attach_socket(theirs).map(|()| ours)
    }

    fn attach_socket(&mut self, server: OwnedFd) -> Result<(), String> {
        let answered = Arc::new(std::sync::Mutex::new(None));
        let told = Arc::clone(&answered);
        let answer = Box::new(move |result| *told.lock().unwrap() = Some(result));
        self.commands.send(Attach { server, answer });
        self.run();
        answered.lock().unwrap().take().unwrap()
    }

    /// Lets the device handle what is ready.
    fn run(&mut self) {
        loop {
            let events = self.poller.wait(Some(0)).unwrap();
            for event in &events {
                self.fs.event(event.token, event.readiness);
            }
            let notified = [self.hiprio.was_notified(), self.requests.was_notified()];
            for (queue, _) in notified.iter().enumerate().filter(|(_, notified)| **notified) {
                self.fs.serve(queue);
            }
            if events.is_empty() && notified == [false; 2] {
                return;
            }
        }
    }

    /// Adds a request with room for a reply; returns where that room is.
    fn request(&mut self, unique: u64, body: &[u8], room: u32) -> u64 {
        let (out, room_at) = (OUT + self.count * 0x1000, IN + self.count * 0x1000);
        self.count += 1;
        let bytes = request(unique, body);
        self.requests.put(out, &bytes);
        let room_pieces = [(room_at, room)];
        self.requests.add(&[(out, bytes.len() as u32)], if room == 0 { &[] } else { &room_pieces });
        self.fs.serve(REQUESTS);
        room_at
    }

    /// The lengths of the replies that the guest was given.
    fn replies(&mut self) -> Vec<u32> {
        self.run();
        self.requests.used().into_iter().map(|(_, length)| length).collect()
    }

    fn error_at(&self, room: u64) -> (u32, i32, u64) {
        let header = self.requests.get(room, REPLY_HEADER);
        let reply = Reply::parse(header.first_chunk().unwrap());
        (reply.len, reply.error, reply.unique)
    }
}

fn request(unique: u64, body: &[u8]) -> Vec<u8> {
    let mut bytes = ((REQUEST_HEADER + body.len()) as u32).to_le_bytes().to_vec();
    bytes.extend(15u32.to_le_bytes());
    bytes.extend(unique.to_le_bytes());
    bytes.resize(REQUEST_HEADER, 0);
    bytes.extend(body);
    bytes
}

fn reply(unique: u64, data: &[u8]) -> Vec<u8> {
    let header = Reply { len: (REPLY_HEADER + data.len()) as u32, error: 0, unique };
    [&header.encode()[..], data].concat()
}

fn packet(server: &OwnedFd) -> Option<Vec<u8>> {
    let mut bytes = vec![0; MAX_MESSAGE_BYTES];
    let (_, length) = recv(server, &mut bytes, RecvFlags::empty()).ok()?;
    bytes.truncate(length);
    Some(bytes)
}

fn answer(server: &OwnedFd, bytes: &[u8]) {
    assert_eq!(send(server, bytes, SendFlags::NOSIGNAL).unwrap(), bytes.len());
}

fn hung_up(server: &OwnedFd) -> bool {
    let mut bytes = [0; 16];
    loop {
        match recv(server, &mut bytes, RecvFlags::empty()) {
            // What it had not read is reported as a reset.
            Ok((_, 0)) | Err(Errno::CONNRESET) => return true,
            Ok(_) => {}
            Err(_) => return false,
        }
    }
}

const EIO: i32 = -libc::EIO;

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
    let (error, init) = ask(&mut guest, op::INIT, 0, &numbers(&[7, 41, 0, u32::MAX]), 64);
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
