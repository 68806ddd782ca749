//! The file system device under a driver of any kind, with a server that may say anything.
#![no_main]

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use libfuzzer_sys::fuzz_target;
use ravelin_fuzz::Input;
use ravelin_vmm::event::Mailbox;
use ravelin_vmm::virtio::fs::{Attach, Fs};
use ravelin_vmm_fuzz::{Bench, DATA, put};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair, sockopt,
};

const REQUEST_HEADER: usize = 40;
const REPLY_HEADER: u32 = 16;

fuzz_target!(|bytes: &[u8]| {
    let commands = Mailbox::new().unwrap();
    let answered = Arc::new(AtomicUsize::new(0));
    let mut attached = 0;
    let mut server: Option<OwnedFd> = None;
    let mut bench = Bench::new(Box::new(Fs::new(Arc::clone(&commands))));
    bench.start(0);
    bench.play(&mut Input::new(bytes), |bench, input| match input.u8() % 8 {
        // A server, with a socket that is soon full.
        0 => {
            let (ours, theirs) =
                socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::NONBLOCK, None).unwrap();
            if input.below(2) == 0 {
                sockopt::set_socket_send_buffer_size(&theirs, 4096).unwrap();
            }
            let told = Arc::clone(&answered);
            let answer = Box::new(move |_| {
                told.fetch_add(1, Ordering::Relaxed);
            });
            attached += 1;
            commands.send(Attach { server: theirs, answer });
            if input.below(4) != 0 {
                server = Some(ours);
            }
        }
        1 => server = None,
        // Any packet.
        2 => {
            if let Some(server) = &server {
                let length = input.below(64);
                let _ = send(server, input.bytes(length), SendFlags::NOSIGNAL);
            }
        }
        // One that looks like a reply.
        3 | 4 => {
            if let Some(server) = &server {
                let data = usize::from(input.u8()) * input.choose(&[1, 1, 64]);
                let length = REPLY_HEADER + data as u32;
                let said = if input.below(16) == 0 { input.u32() } else { length };
                let error = input.choose(&[0, 0, 0, -2, -5, 1, -512, i32::MIN]);
                let mut reply = [said.to_le_bytes(), error.to_le_bytes()].concat();
                reply.extend(u64::from(input.u8() % 8).to_le_bytes());
                reply.resize(length as usize, 0xab);
                let _ = send(server, &reply, SendFlags::NOSIGNAL);
            }
        }
        // What the server was sent is a whole request.
        5 => {
            let mut packet = vec![0; 1 << 16];
            if let Some(server) = &server
                && let Ok((_, length)) = recv(server, &mut packet, RecvFlags::empty())
                && length > 0
            {
                assert!(length >= REQUEST_HEADER, "a request of {length} bytes");
            }
        }
        // A request that looks like one.
        _ => {
            let body = usize::from(input.u8()) * input.choose(&[1, 1, 64]);
            let length = (REQUEST_HEADER + body) as u32;
            let said = if input.below(16) == 0 { input.u32() } else { length };
            let at = DATA + u64::from(input.u8() % 4) * 0x1000;
            let mut header = [said.to_le_bytes(), u32::from(input.u8()).to_le_bytes()].concat();
            header.extend(u64::from(input.u8() % 8).to_le_bytes());
            put(&bench.memory, at, &header);
            let room = (DATA + 0x8000, u32::from(input.u8()) * input.choose(&[1, 1, 64]));
            let cut = 1 + input.below(REQUEST_HEADER) as u32;
            let pieces = [(at, cut), (at + u64::from(cut), length - cut)];
            let queue = input.below(2);
            let memory = bench.memory.clone();
            bench.rings[queue].add_plain(
                &memory,
                &pieces,
                if room.1 == 0 { &[] } else { std::slice::from_ref(&room) },
            );
            bench.set(0x50, queue as u32);
        }
    });
    bench.finish();
    assert_eq!(answered.load(Ordering::Relaxed), attached, "each server is taken or refused");
});
