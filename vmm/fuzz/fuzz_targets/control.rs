//! Packets of the control protocol: the shim's as the machine reads them, the machine's as the shim does.
#![no_main]

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;

use libfuzzer_sys::fuzz_target;
use ravelin_fuzz::Input;
use ravelin_vmm::control::transport::{TransportError, pair, recv, send};
use ravelin_vmm::control::{MAX_PACKET_BYTES, MAX_PACKET_FDS, Message, Request};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde::Serialize;
use serde::de::DeserializeOwned;

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    // One more than may come, so that too many are tried too.
    let fds = input.choose(&[0, 1, 4, MAX_PACKET_FDS, MAX_PACKET_FDS + 1]);
    let is_request = input.below(2) == 0;
    let document = input.rest();
    if is_request { receive::<Request>(document, fds) } else { receive::<Message>(document, fds) }
});

fn receive<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(document: &[u8], fds: usize) {
    let (ours, theirs) = pair().unwrap();
    let attached = vec![ours.as_fd(); fds];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_PACKET_FDS + 1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(fds == 0 || control.push(SendAncillaryMessage::ScmRights(&attached)));
    if sendmsg(&ours, &[IoSlice::new(document)], &mut control, SendFlags::NOSIGNAL).is_err() {
        return;
    }
    match recv::<T>(&theirs) {
        Ok(None) => assert!(document.is_empty()),
        Ok(Some(packet)) => {
            assert!(document.len() <= MAX_PACKET_BYTES && fds <= MAX_PACKET_FDS);
            assert_eq!(packet.fds.len(), fds);
            // What was understood is understood the same again.
            match send(&ours, &packet.message, &[]) {
                Ok(()) => assert_eq!(recv::<T>(&theirs).unwrap().unwrap().message, packet.message),
                // Escapes can make a document longer.
                Err(error) => assert!(matches!(error, TransportError::TooLarge)),
            }
        }
        Err(TransportError::Socket(error)) => panic!("{error}"),
        Err(TransportError::TooManyFds) => assert!(fds > MAX_PACKET_FDS),
        Err(TransportError::TooLarge) => assert!(document.len() > MAX_PACKET_BYTES),
        Err(TransportError::Malformed(_)) => {}
    }
}
