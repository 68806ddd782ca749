use std::os::unix::net::UnixDatagram;

use super::*;
use crate::machine::memory;
use crate::virtio::testing::Driver;

const DATA: u64 = 0x40_0000;

/// A datagram socket keeps frames apart like a tap does.
fn wire() -> (UnixDatagram, UnixDatagram) {
    let (near, far) = UnixDatagram::pair().unwrap();
    near.set_nonblocking(true).unwrap();
    far.set_nonblocking(true).unwrap();
    (near, far)
}

fn frame(length: usize) -> Vec<u8> {
    let mut frame = vec![0; HEADER_BYTES];
    frame.extend((0..length).map(|at| (at % 251) as u8));
    frame
}

#[test]
fn a_frame_fills_as_many_buffers_as_it_needs_and_says_so() {
    let mut driver = Driver::new();
    let mut receiver = Receiver::new(driver.queue(), true, 4096);
    let (near, far) = wire();
    far.send(&frame(1000)).unwrap();
    far.send(&frame(10)).unwrap();
    // Too little room for the largest frame: nothing is taken off the wire.
    for buffer in 0..7u64 {
        driver.add(&[], &[(DATA + buffer * 0x1000, 512)]);
    }
    receiver.receive(&near);
    assert!(driver.used().is_empty());
    for buffer in 7..10u64 {
        driver.add(&[], &[(DATA + buffer * 0x1000, 512)]);
    }
    receiver.receive(&near);
    assert_eq!(driver.used(), [(0, 512), (1, 500), (2, 22)]);
    assert_eq!(driver.get(DATA + 10, 2), [2, 0]);
    assert_eq!(driver.get(DATA + 12, 500), frame(1000)[12..512]);
    assert_eq!(driver.get(DATA + 0x1000, 500), frame(1000)[512..]);
    assert_eq!(driver.get(DATA + 0x2000 + 10, 2), [1, 0]);
}

#[test]
fn without_mergeable_buffers_each_frame_gets_one_chain() {
    let mut driver = Driver::new();
    let mut receiver = Receiver::new(driver.queue(), false, MAX_FRAME_BYTES);
    let (near, far) = wire();
    far.send(&frame(100)).unwrap();
    far.send(&frame(2000)).unwrap();
    driver.add(&[], &[(DATA, 12), (DATA + 0x1000, 1500)]);
    driver.add(&[], &[(DATA + 0x2000, 1000)]);
    receiver.receive(&near);
    assert_eq!(driver.used(), [(0, 112), (2, 1000)]);
    assert_eq!(driver.get(DATA + 10, 2), [1, 0]);
}

#[test]
fn buffers_too_small_for_a_header_are_given_back() {
    let mut driver = Driver::new();
    let mut receiver = Receiver::new(driver.queue(), false, 2048);
    let (near, far) = wire();
    far.send(&frame(100)).unwrap();
    driver.add(&[], &[(DATA, 11)]);
    driver.add(&[(DATA, 100)], &[]);
    driver.add(&[], &[(DATA, 1600)]);
    receiver.receive(&near);
    assert_eq!(driver.used(), [(0, 0), (1, 0), (2, 112)]);
}

#[test]
fn frames_are_sent_whole_and_impossible_ones_dropped() {
    let mut driver = Driver::new();
    let mut queue = driver.queue();
    let (near, far) = wire();
    let sent = frame(200);
    driver.put(DATA, &sent);
    driver.add(&[(DATA, 12), (DATA + 12, 200)], &[]);
    driver.add(&[(DATA, 12)], &[]);
    driver.add(&[(DATA, MAX_FRAME_BYTES as u32 + 1)], &[]);
    driver.add(&[], &[(DATA, 100)]);
    transmit(&mut queue, &near);
    assert_eq!(driver.used().len(), 4);
    let mut read = [0; 4096];
    assert_eq!(far.recv(&mut read).unwrap(), sent.len());
    assert_eq!(&read[..sent.len()], &sent[..]);
    assert!(far.recv(&mut read).is_err());
}

#[test]
fn a_frame_that_does_not_fit_the_wire_waits_for_it() {
    let mut driver = Driver::new();
    let mut queue = driver.queue();
    let (near, far) = wire();
    while near.send(&frame(100)).is_ok() {}
    driver.add(&[(DATA, 200)], &[]);
    transmit(&mut queue, &near);
    assert!(driver.used().is_empty());
    let mut read = [0; 4096];
    while far.recv(&mut read).is_ok() {}
    transmit(&mut queue, &near);
    assert_eq!(driver.used(), [(0, 0)]);
    assert_eq!(far.recv(&mut read).unwrap(), 200);
}

#[test]
fn only_possible_numbers_of_queue_pairs_are_accepted() {
    for (command, accepted) in [
        ([4, 0, 1, 0], Some(1)),
        ([4, 0, 4, 0], Some(4)),
        ([4, 0, 0, 0], None),
        ([4, 0, 5, 0], None),
        ([4, 0, 0xff, 0xff], None),
        ([4, 1, 1, 0], None),
        ([0, 0, 1, 0], None),
    ] {
        let mut driver = Driver::new();
        let mut queue = driver.queue();
        driver.put(DATA, &command);
        driver.add(&[(DATA, 2), (DATA + 2, 2)], &[(DATA + 100, 1)]);
        assert_eq!(control::serve(&mut queue, 4), accepted, "{command:?}");
        assert_eq!(driver.get(DATA + 100, 1), [u8::from(accepted.is_none())], "{command:?}");
    }
    let mut driver = Driver::new();
    let mut queue = driver.queue();
    driver.add(&[(DATA, 3)], &[(DATA + 100, 1)]);
    driver.add(&[(DATA, 4)], &[]);
    assert_eq!(control::serve(&mut queue, 4), None);
    assert_eq!(driver.used(), [(0, 1), (2, 0)]);
}

#[test]
fn offloads_depend_on_each_other() {
    let all = F_GUEST_CSUM | F_GUEST_TSO4 | F_GUEST_TSO6 | F_GUEST_ECN;
    assert_eq!(offloads(all), 15);
    assert_eq!(offloads(all & !F_GUEST_CSUM), 0);
    assert_eq!(offloads(F_GUEST_CSUM | F_GUEST_ECN), tap::OFFLOAD_CSUM);
    assert_eq!(offloads(0), 0);
}

#[test]
fn what_is_no_tap_is_refused() {
    let error = Net::new(vec![tempfile::tempfile().unwrap()], [0; 6], 1500).unwrap_err();
    assert!(matches!(error, NetError::Tap { queue: 0, .. }));
}

#[test]
fn a_broken_queue_stops_its_receiver() {
    let memory = memory::allocate(64).unwrap();
    let driver = Driver::at(&memory, 0x10_0000);
    driver.set_available_index(1000);
    let mut receiver = Receiver::new(driver.queue(), true, 2048);
    let (near, far) = wire();
    far.send(&frame(100)).unwrap();
    receiver.receive(&near);
    assert!(driver.interrupt.is_reset_needed());
}

#[test]
fn useless_buffers_among_good_ones_are_given_back_once_and_fill_nothing() {
    let mut driver = Driver::new();
    let mut receiver = Receiver::new(driver.queue(), true, 1000);
    let (near, far) = wire();
    driver.add(&[], &[(DATA, 512)]);
    driver.add(&[], &[(DATA + 0x1000, 11)]);
    driver.add(&[(DATA, 8)], &[]);
    driver.add(&[], &[(DATA + 0x2000, 512)]);
    receiver.receive(&near);
    assert_eq!(driver.used(), [(1, 0), (2, 0)]);
    far.send(&frame(1000)).unwrap();
    receiver.receive(&near);
    assert_eq!(driver.used(), [(0, 512), (3, 500)]);
    assert_eq!(driver.get(DATA + 10, 2), [2, 0]);
    // Nothing of it comes a second time.
    driver.add(&[], &[(DATA + 0x3000, 1024)]);
    far.send(&frame(20)).unwrap();
    receiver.receive(&near);
    assert_eq!(driver.used(), [(4, 32)]);
}
