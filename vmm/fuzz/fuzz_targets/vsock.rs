//! The socket device under a driver of any kind, with connections from the host.
#![no_main]

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use ravelin_fuzz::Input;
use ravelin_vmm::event::Mailbox;
use ravelin_vmm::virtio::vsock::{Command, Connected, Vsock};
use ravelin_vmm_fuzz::{Bench, DATA, put};

const FROM_GUEST: usize = 1;
/// The first port that the host's streams have.
const FIRST_PORT: u32 = 0x4000_0000;
const GUEST_PORT: u32 = 1024;

fuzz_target!(|bytes: &[u8]| {
    let commands = Mailbox::new().unwrap();
    let answers = Arc::new(Mutex::new(HashMap::<u64, usize>::new()));
    let told = Arc::clone(&answers);
    let answer = Box::new(move |connected: Connected| {
        *told.lock().unwrap().entry(connected.id).or_default() += 1;
    });
    let mut bench = Bench::new(Box::new(Vsock::new(Arc::clone(&commands), answer)));
    bench.start(0);
    let mut sockets = Vec::new();
    bench.play(&mut Input::new(bytes), |bench, input| match input.u8() % 8 {
        0 => {
            let (ours, theirs) = UnixStream::pair().unwrap();
            ours.set_nonblocking(true).unwrap();
            let id = sockets.len() as u64;
            sockets.push(ours);
            let within = Duration::from_secs(input.choose(&[60, 0]));
            commands.send(Command::Connect { id, port: GUEST_PORT, within, socket: theirs.into() });
            bench.turn();
        }
        1 => commands.send(Command::AgentReady),
        2 => commands.send(Command::WhenDrained(Box::new(|| {}))),
        3 if !sockets.is_empty() => {
            let number = input.below(sockets.len());
            let mut socket = &sockets[number];
            match input.u8() % 4 {
                0 => drop(socket.write(&vec![7; usize::from(input.u16())])),
                1 => drop(socket.read(&mut vec![0; usize::from(input.u16())])),
                2 => drop(socket.shutdown(input.choose(&[Shutdown::Read, Shutdown::Write, Shutdown::Both]))),
                _ => sockets[number] = UnixStream::pair().unwrap().0,
            }
        }
        // A packet that looks like one.
        4 | 5 => {
            let op = match input.u8() {
                255 => input.u16(),
                known => u16::from(known % 9),
            };
            let data = u32::from(input.u16() % 0x1000);
            let length = if input.below(8) == 0 { input.u32() } else { data };
            let words = [
                3,
                0,
                2,
                0,
                GUEST_PORT,
                FIRST_PORT + u32::from(input.u8() % 4),
                length,
                1 | u32::from(op) << 16,
                u32::from(input.u8() % 4),
                input.choose(&[0x1_0000, 0, 16, u32::MAX]),
                if input.below(8) == 0 { input.u32() } else { 0 },
            ];
            let header: Vec<u8> = words.iter().flat_map(|word: &u32| word.to_le_bytes()).collect();
            put(&bench.memory, DATA, &header);
            let memory = bench.memory.clone();
            bench.rings[FROM_GUEST].add_plain(&memory, &[(DATA, 44 + data)], &[]);
            bench.set(0x50, 1);
            bench.turn();
        }
        // Room for packets.
        _ => {
            let memory = bench.memory.clone();
            let length = u32::from(input.u16() % 0x2000);
            bench.rings[0].add_plain(&memory, &[], &[(DATA + 0x4000, length)]);
            bench.set(0x50, 0);
        }
    });
    bench.finish();
    assert!(answers.lock().unwrap().values().all(|count| *count == 1), "a request is answered once");
});
