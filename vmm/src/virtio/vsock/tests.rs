use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use super::packet::{OP_REQUEST, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use super::*;
use crate::event::Poller;
use crate::machine::memory;
use crate::virtio::testing::Driver;

const RX_DATA: u64 = 0x40_0000;
const TX_DATA: u64 = 0x50_0000;
const BUFFER: u32 = 4096;
const WITHIN: Duration = Duration::from_secs(20);

/// A device, its event loop and the guest's driver, all in one thread.
struct Guest {
    vsock: Vsock,
    poller: Poller,
    commands: Arc<Mailbox<Command>>,
    answers: Arc<Mutex<Vec<Connected>>>,
    to_guest: Driver,
    from_guest: Driver,
    posted: u64,
}

impl Guest {
    fn new() -> Self {
        let memory = memory::allocate(64).unwrap();
        let (to_guest, from_guest) = (Driver::at(&memory, 0x10_0000), Driver::at(&memory, 0x20_0000));
        let commands = Mailbox::new().unwrap();
        let answers = Arc::new(Mutex::new(Vec::new()));
        let taken = Arc::clone(&answers);
        let answer = Box::new(move |connected| taken.lock().unwrap().push(connected));
        let mut vsock = Vsock::new(Arc::clone(&commands), answer);
        let poller = Poller::new().unwrap();
        vsock.attach(poller.registrar(0)).unwrap();
        vsock.activate(0, vec![Some(to_guest.queue()), Some(from_guest.queue()), None]);
        let mut guest = Self { vsock, poller, commands, answers, to_guest, from_guest, posted: 0 };
        for _ in 0..8 {
            guest.post();
        }
        guest
    }

    /// Gives the device a buffer to fill.
    fn post(&mut self) {
        let address = RX_DATA + (self.posted % 16) * 0x2000;
        self.posted += 1;
        self.to_guest.add(&[], &[(address, BUFFER)]);
    }

    /// Lets the device handle what is ready.
    fn run(&mut self) {
        loop {
            let events = self.poller.wait(Some(0)).unwrap();
            if events.is_empty() {
                return;
            }
            for event in events {
                self.vsock.event(event.token, event.readiness);
            }
        }
    }

    /// Packets that the guest got, with their data; their buffers are posted again.
    fn packets(&mut self) -> Vec<(Header, Vec<u8>)> {
        self.run();
        self.vsock.serve(TO_GUEST);
        let mut packets = Vec::new();
        loop {
            let used = self.to_guest.used();
            if used.is_empty() {
                return packets;
            }
            for (head, length) in used {
                // Buffers are posted in turn, one descriptor each.
                let address = RX_DATA + u64::from(head) * 0x2000;
                let bytes = self.to_guest.get(address, length as usize);
                let header = Header::parse(bytes.first_chunk().unwrap());
                packets.push((header, bytes[HEADER_BYTES..].to_vec()));
                self.post();
            }
            self.run();
            self.vsock.serve(TO_GUEST);
        }
    }

    fn send(&mut self, header: Header, data: &[u8]) {
        self.from_guest.put(TX_DATA, &header.encode());
        self.from_guest.put(TX_DATA + HEADER_BYTES as u64, data);
        let length = (HEADER_BYTES + data.len()) as u32;
        self.from_guest.add(&[(TX_DATA, length)], &[]);
        self.vsock.serve(FROM_GUEST);
        assert_eq!(self.from_guest.used().len(), 1);
    }

    /// A packet that answers `other`.
    fn answer_to(other: &Header, op: u16) -> Header {
        Header {
            src_cid: GUEST_CID,
            dst_cid: HOST_CID,
            src_port: other.dst_port,
            dst_port: other.src_port,
            len: 0,
            kind: TYPE_STREAM,
            op,
            flags: 0,
            buf_alloc: 64 << 10,
            fwd_cnt: 0,
        }
    }

    fn connect(&mut self) -> (UnixStream, Header) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        self.commands.send(Command::AgentReady);
        self.commands.send(Command::Connect { id: 7, port: 1024, within: WITHIN, socket: theirs.into() });
        let packets = self.packets();
        let [(request, _)] = &packets[..] else { panic!("{packets:?}") };
        assert_eq!((request.op, request.dst_port), (OP_REQUEST, 1024));
        self.send(Self::answer_to(request, OP_RESPONSE), &[]);
        let answers = std::mem::take(&mut *self.answers.lock().unwrap());
        assert!(matches!(&answers[..], [Connected { id: 7, result: Ok(()) }]));
        (ours, *request)
    }
}

#[test]
fn bytes_flow_both_ways_and_ends_are_told_apart() {
    let mut guest = Guest::new();
    let (mut host, request) = guest.connect();
    host.write_all(b"question").unwrap();
    let packets = guest.packets();
    assert_eq!((packets[0].0.op, &packets[0].1[..]), (OP_RW, &b"question"[..]));

    guest.send(Header { len: 6, ..Guest::answer_to(&request, OP_RW) }, b"answer");
    let mut read = [0; 6];
    host.read_exact(&mut read).unwrap();
    assert_eq!(&read, b"answer");

    host.shutdown(std::net::Shutdown::Write).unwrap();
    let packets = guest.packets();
    assert_eq!((packets[0].0.op, packets[0].0.flags), (OP_SHUTDOWN, SHUTDOWN_SEND));
    guest.send(Header { len: 5, ..Guest::answer_to(&request, OP_RW) }, b"later");
    guest.send(Header { flags: SHUTDOWN_BOTH, ..Guest::answer_to(&request, OP_SHUTDOWN) }, &[]);
    let mut rest = Vec::new();
    host.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"later");
    let packets = guest.packets();
    assert_eq!(packets[0].0.op, OP_RST);
    assert!(guest.vsock.streams.is_empty());
}

#[test]
fn a_large_transfer_to_the_guest_keeps_to_its_credit() {
    let mut guest = Guest::new();
    let (mut host, request) = guest.connect();
    let sent: Vec<u8> = (0..200_000u32).map(|value| (value % 251) as u8).collect();
    let writer = std::thread::spawn({
        let sent = sent.clone();
        move || {
            host.write_all(&sent).unwrap();
            host
        }
    });
    let mut received = Vec::new();
    let mut taken = 0;
    while received.len() < sent.len() {
        for (header, data) in guest.packets() {
            if header.op == OP_RW {
                received.extend_from_slice(&data);
            }
        }
        assert!(received.len() - taken <= 64 << 10, "more than the guest has room for");
        taken = received.len();
        let update = Header { fwd_cnt: taken as u32, ..Guest::answer_to(&request, OP_CREDIT_UPDATE) };
        guest.send(update, &[]);
    }
    assert_eq!(received, sent);
    drop(writer.join().unwrap());
    let ends: Vec<_> = guest.packets().iter().map(|(header, _)| (header.op, header.flags)).collect();
    assert_eq!(ends, [(OP_SHUTDOWN, SHUTDOWN_BOTH)]);
}

#[test]
fn a_host_that_does_not_read_holds_the_guest_back_and_loses_nothing() {
    let mut guest = Guest::new();
    let (mut host, request) = guest.connect();
    let chunk = vec![7u8; 16 << 10];
    let mut sent = 0usize;
    let mut told = 0u32;
    // Send what the credit allows until the device has no room left.
    loop {
        for (header, _) in guest.packets() {
            told = header.fwd_cnt;
        }
        if sent + chunk.len() > told as usize + BUFFER_BYTES as usize {
            break;
        }
        guest.send(Header { len: chunk.len() as u32, ..Guest::answer_to(&request, OP_RW) }, &chunk);
        sent += chunk.len();
    }
    let drained = Arc::new(AtomicBool::new(false));
    let tell = Arc::clone(&drained);
    guest.commands.send(Command::WhenDrained(Box::new(move || tell.store(true, Ordering::SeqCst))));
    guest.run();
    assert!(!drained.load(Ordering::SeqCst));
    // The guest's driver goes away; what it sent still arrives, whole.
    guest.vsock.reset();
    let reader = std::thread::spawn(move || {
        let mut all = Vec::new();
        host.read_to_end(&mut all).unwrap();
        all
    });
    while !reader.is_finished() {
        guest.run();
    }
    let all = reader.join().unwrap();
    assert_eq!(all.len(), sent);
    assert!(all.iter().all(|byte| *byte == 7));
    assert!(guest.vsock.streams.is_empty());
    assert!(drained.load(Ordering::SeqCst));
}

#[test]
fn draining_does_not_wait_for_a_host_that_is_gone_nor_for_a_guest_that_does_not_take_its_reset() {
    let mut guest = Guest::new();
    let (mut host, request) = guest.connect();
    // Use up the guest's buffers: it will not hear of the reset.
    host.write_all(&[1; 8 * BUFFER as usize]).unwrap();
    guest.run();
    let chunk = vec![7u8; 64 << 10];
    while guest.vsock.streams.values().all(|stream| stream.state() == State::Open) {
        guest.send(Header { len: chunk.len() as u32, ..Guest::answer_to(&request, OP_RW) }, &chunk);
    }
    let drained = Arc::new(AtomicBool::new(false));
    let tell = Arc::clone(&drained);
    guest.commands.send(Command::WhenDrained(Box::new(move || tell.store(true, Ordering::SeqCst))));
    guest.run();
    assert!(!drained.load(Ordering::SeqCst), "the host may still read what was sent before the reset");
    drop(host);
    guest.run();
    assert_eq!(guest.vsock.streams.len(), 1, "the reset is still to be told");
    assert!(drained.load(Ordering::SeqCst));
}

#[test]
fn a_guest_that_sends_more_than_it_may_is_reset() {
    let mut guest = Guest::new();
    let (_host, request) = guest.connect();
    let chunk = vec![7u8; 64 << 10];
    // The socket's own buffer takes some; far more than that and the device's buffer cannot be right.
    for _ in 0..64 {
        guest.send(Header { len: chunk.len() as u32, ..Guest::answer_to(&request, OP_RW) }, &chunk);
    }
    let resets = guest.packets().iter().filter(|(header, _)| header.op == OP_RST).count();
    assert!(resets > 0);
}

#[test]
fn the_guest_cannot_connect_and_cannot_speak_for_others() {
    let mut guest = Guest::new();
    let (_host, request) = guest.connect();
    let unknown = Header { src_port: 99, dst_port: 2375, ..Guest::answer_to(&request, OP_REQUEST) };
    guest.send(unknown, &[]);
    let other_port = Header { src_port: 99, ..Guest::answer_to(&request, OP_RW) };
    guest.send(other_port, &[]);
    let seqpacket = Header { kind: 2, ..Guest::answer_to(&request, OP_RW) };
    guest.send(seqpacket, &[]);
    let resets: Vec<_> =
        guest.packets().iter().map(|(header, _)| (header.op, header.dst_port, header.kind)).collect();
    assert_eq!(resets, [(OP_RST, 99, 1), (OP_RST, 99, 1), (OP_RST, 1024, 2)]);
    // Neither a reset of something unknown nor a false address is answered.
    guest.send(Header { op: OP_RST, ..unknown }, &[]);
    guest.send(Header { src_cid: 5, ..unknown }, &[]);
    guest.send(Header { dst_cid: 1, ..unknown }, &[]);
    assert!(guest.packets().is_empty());
    assert_eq!(guest.vsock.streams.len(), 1);
}

#[test]
fn buffers_without_room_for_data_are_given_back_and_stop_nothing() {
    let mut guest = Guest::new();
    let (mut host, _) = guest.connect();
    // Use up the good buffers, then offer some of exactly a header.
    host.write_all(&[1; 8 * BUFFER as usize]).unwrap();
    guest.run();
    guest.vsock.serve(TO_GUEST);
    assert_eq!(guest.to_guest.used().len(), 8);
    for _ in 0..4 {
        guest.to_guest.add(&[], &[(RX_DATA, HEADER_BYTES as u32)]);
    }
    host.write_all(b"more").unwrap();
    guest.run();
    guest.vsock.serve(TO_GUEST);
    assert!(guest.to_guest.used().iter().all(|(_, length)| *length == 0));
    guest.post();
    guest.vsock.serve(TO_GUEST);
    assert_eq!(guest.to_guest.used().len(), 1);
}

#[test]
fn a_length_beyond_the_packet_resets_the_stream() {
    let mut guest = Guest::new();
    let (mut host, request) = guest.connect();
    guest.send(Header { len: u32::MAX, ..Guest::answer_to(&request, OP_RW) }, b"x");
    assert_eq!(guest.packets()[0].0.op, OP_RST);
    let mut rest = Vec::new();
    host.read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty());
}

#[test]
fn a_flood_of_requests_stops_being_read_until_the_guest_takes_its_resets() {
    let mut guest = Guest::new();
    let request = Header::to_guest(1, 2, OP_REQUEST);
    let flood = Header { src_port: 9, ..Guest::answer_to(&request, OP_REQUEST) };
    guest.from_guest.put(TX_DATA, &flood.encode());
    let mut answered = 0;
    for _ in 0..MAX_RESETS + 100 {
        guest.from_guest.add(&[(TX_DATA, HEADER_BYTES as u32)], &[]);
        guest.vsock.serve(FROM_GUEST);
        answered += guest.from_guest.used().len();
        if guest.vsock.resets.len() == MAX_RESETS {
            break;
        }
    }
    assert_eq!(guest.vsock.resets.len(), MAX_RESETS);
    assert_eq!(answered, MAX_RESETS + 8, "eight went into the posted buffers");
    guest.from_guest.add(&[(TX_DATA, HEADER_BYTES as u32)], &[]);
    guest.vsock.serve(FROM_GUEST);
    assert!(guest.from_guest.used().is_empty());
    let resets = guest.packets().len();
    assert_eq!(resets, MAX_RESETS + 9);
    assert!(guest.from_guest.was_notified(), "it is listened to again, even if the guest does nothing else");
}

#[test]
fn a_refusal_before_the_agent_is_ready_is_tried_again_and_after_it_is_final() {
    let mut guest = Guest::new();
    let (_ours, theirs) = UnixStream::pair().unwrap();
    guest.commands.send(Command::Connect { id: 1, port: 5, within: WITHIN, socket: theirs.into() });
    let (request, _) = guest.packets().remove(0);
    guest.send(Guest::answer_to(&request, OP_RST), &[]);
    assert!(guest.answers.lock().unwrap().is_empty());
    guest.commands.send(Command::AgentReady);
    let (again, _) = guest.packets().remove(0);
    assert_eq!(again.op, OP_REQUEST);
    guest.send(Guest::answer_to(&again, OP_RST), &[]);
    let answers = guest.answers.lock().unwrap();
    assert!(matches!(&answers[..], [Connected { id: 1, result: Err(_) }]));
    assert!(guest.vsock.streams.is_empty());
}

#[test]
fn a_guest_that_does_not_answer_in_the_time_it_was_given_has_refused() {
    let mut guest = Guest::new();
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let within = Duration::from_millis(1);
    guest.commands.send(Command::Connect { id: 1, port: 5, within, socket: theirs.into() });
    let mut said = Vec::new();
    while said.len() < 2 {
        said.extend(guest.packets().into_iter().map(|(packet, _)| packet.op));
    }
    assert_eq!(said, [OP_REQUEST, OP_RST]);
    assert!(matches!(&guest.answers.lock().unwrap()[..], [Connected { id: 1, result: Err(_) }]));
    assert_eq!(ours.read(&mut [0]).unwrap(), 0, "the host's side is closed");
}

#[test]
fn a_driver_reset_drops_open_streams_and_repeats_attempts() {
    let mut guest = Guest::new();
    let (mut host, _) = guest.connect();
    let (_ours, theirs) = UnixStream::pair().unwrap();
    guest.commands.send(Command::Connect { id: 8, port: 6, within: WITHIN, socket: theirs.into() });
    assert_eq!(guest.packets().len(), 1);
    guest.vsock.reset();
    let mut rest = Vec::new();
    host.read_to_end(&mut rest).unwrap();
    assert_eq!(guest.vsock.streams.len(), 1);
    assert!(guest.vsock.streams.values().all(Stream::has_packet));
}

#[test]
fn a_host_that_closes_after_it_had_ended_its_direction_is_told_as_gone() {
    let mut guest = Guest::new();
    let (host, request) = guest.connect();
    host.shutdown(std::net::Shutdown::Write).unwrap();
    let told = |guest: &mut Guest| -> Vec<_> {
        guest.packets().iter().map(|(header, _)| (header.op, header.flags)).collect()
    };
    assert_eq!(told(&mut guest), [(OP_SHUTDOWN, SHUTDOWN_SEND)]);
    drop(host);
    assert_eq!(told(&mut guest), [(OP_SHUTDOWN, SHUTDOWN_BOTH)]);
    guest.send(Guest::answer_to(&request, OP_RST), &[]);
    assert!(guest.vsock.streams.is_empty());
}

#[test]
fn a_host_that_closes_is_told_as_gone_to_a_guest_that_takes_nothing_more() {
    let mut guest = Guest::new();
    let (mut host, request) = guest.connect();
    guest.send(Header { flags: SHUTDOWN_RECEIVE, ..Guest::answer_to(&request, OP_SHUTDOWN) }, &[]);
    guest.send(Header { len: 4, ..Guest::answer_to(&request, OP_RW) }, b"last");
    assert!(guest.packets().is_empty());
    let mut read = [0; 4];
    host.read_exact(&mut read).unwrap();
    drop(host);
    let told: Vec<_> = guest.packets().iter().map(|(header, _)| (header.op, header.flags)).collect();
    assert_eq!(told, [(OP_SHUTDOWN, SHUTDOWN_BOTH)]);
}

#[test]
fn a_guest_that_does_not_answer_the_end_of_a_stream_is_reset_in_the_end() {
    let mut guest = Guest::new();
    guest.vsock.farewell = Duration::from_millis(5);
    let (host, _) = guest.connect();
    let (half_closed, _) = guest.connect();
    half_closed.shutdown(std::net::Shutdown::Write).unwrap();
    drop(host);
    let mut said = Vec::new();
    while guest.vsock.streams.len() > 1 {
        said.extend(guest.packets().into_iter().map(|(packet, _)| (packet.op, packet.flags)));
    }
    said.retain(|packet| *packet != (OP_SHUTDOWN, SHUTDOWN_SEND));
    assert_eq!(said, [(OP_SHUTDOWN, SHUTDOWN_BOTH), (OP_RST, 0)]);
    std::thread::sleep(Duration::from_millis(20));
    assert!(guest.packets().is_empty(), "one direction may stay open for as long as it likes");
    assert_eq!(guest.vsock.streams.len(), 1);
}

#[test]
fn a_guest_that_takes_no_packets_does_not_keep_its_streams() {
    let mut guest = Guest::new();
    guest.vsock.farewell = Duration::from_millis(5);
    let (mut host, request) = guest.connect();
    let (broken, other) = guest.connect();
    // Use up the guest's buffers: it will hear of nothing.
    host.write_all(&[1; 8 * BUFFER as usize]).unwrap();
    guest.run();
    guest.vsock.serve(TO_GUEST);
    assert_eq!(guest.to_guest.used().len(), 8);
    guest.send(Header { len: u32::MAX, ..Guest::answer_to(&other, OP_RW) }, b"x");
    assert_eq!(guest.vsock.streams.len(), 2);
    while guest.vsock.streams.len() > 1 {
        guest.run();
    }
    guest.send(Header { flags: SHUTDOWN_RECEIVE, ..Guest::answer_to(&request, OP_SHUTDOWN) }, &[]);
    drop((host, broken));
    while !guest.vsock.streams.is_empty() {
        guest.run();
    }
    assert!(guest.vsock.waiting.is_empty(), "what is forgotten is not in line");
    // It hears so when it speaks of them.
    guest.send(Guest::answer_to(&request, OP_CREDIT_UPDATE), &[]);
    for _ in 0..8 {
        guest.post();
    }
    let told: Vec<_> = guest.packets().iter().map(|(header, _)| header.op).collect();
    assert_eq!(told, [OP_RST]);
}
