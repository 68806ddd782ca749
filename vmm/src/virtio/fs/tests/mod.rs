//! A driver and a file server, played by hand.

mod requests;
mod servers;

use std::cell::Cell;
use std::os::fd::AsRawFd;
use std::rc::Rc;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair, sockopt,
};

use super::message::{REQUEST_HEADER, Reply};
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
