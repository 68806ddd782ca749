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
    receiver.receive(&near, &mut Budget::new(BUDGET));
    assert!(driver.used().is_empty());
    for buffer in 7..10u64 {
        driver.add(&[], &[(DATA + buffer * 0x1000, 512)]);
    }
    receiver.receive(&near, &mut Budget::new(BUDGET));
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
    receiver.receive(&near, &mut Budget::new(BUDGET));
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
    receiver.receive(&near, &mut Budget::new(BUDGET));
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
    transmit(&mut queue, &near, &mut Budget::new(BUDGET));
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
    transmit(&mut queue, &near, &mut Budget::new(BUDGET));
    assert!(driver.used().is_empty());
    let mut read = [0; 4096];
    while far.recv(&mut read).is_ok() {}
    transmit(&mut queue, &near, &mut Budget::new(BUDGET));
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
    receiver.receive(&near, &mut Budget::new(BUDGET));
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
    receiver.receive(&near, &mut Budget::new(BUDGET));
    assert_eq!(driver.used(), [(1, 0), (2, 0)]);
    far.send(&frame(1000)).unwrap();
    receiver.receive(&near, &mut Budget::new(BUDGET));
    assert_eq!(driver.used(), [(0, 512), (3, 500)]);
    assert_eq!(driver.get(DATA + 10, 2), [2, 0]);
    // Nothing of it comes a second time.
    driver.add(&[], &[(DATA + 0x3000, 1024)]);
    far.send(&frame(20)).unwrap();
    receiver.receive(&near, &mut Budget::new(BUDGET));
    assert_eq!(driver.used(), [(4, 32)]);
}

/// A device on sockets in the place of taps, with the far ends of their wires.
fn device(pairs: usize) -> (Net, Vec<UnixDatagram>) {
    let (near, far): (Vec<_>, Vec<_>) = (0..pairs).map(|_| wire()).unzip();
    let taps: Vec<_> = near.into_iter().map(Tap::stand_in).collect();
    (Net::on(taps, [2, 0, 0, 0, 0, 1], 1500), far)
}

/// The drivers of `count` queues in one memory.
fn drivers(count: u64) -> Vec<Driver> {
    let memory = memory::allocate(64).unwrap();
    (0..count).map(|queue| Driver::at(&memory, 0x10_0000 + queue * 0x1_0000)).collect()
}

#[test]
fn the_control_queue_follows_the_pairs_that_were_negotiated() {
    for (features, index) in [(F_CTRL_VQ, 2), (F_CTRL_VQ | F_MQ, 8)] {
        let (mut net, _far) = device(4);
        assert_eq!(net.describe().queues.len(), 9);
        let mut drivers = drivers(9);
        net.activate(features, drivers.iter().map(|driver| Some(driver.queue())).collect());
        let control = &mut drivers[index];
        control.put(DATA, &[4, 0, 1, 0]);
        control.add(&[(DATA, 4)], &[(DATA + 100, 1)]);
        net.serve(index);
        assert_eq!(control.used(), [(0, 1)], "{features:#x}");
    }
}

#[test]
fn a_flood_at_one_tap_leaves_the_others_their_part_of_the_budget() {
    let (mut net, far) = device(32);
    let mut drivers = drivers(2);
    net.activate(0, drivers.iter().map(|driver| Some(driver.queue())).collect());
    for (tap, far) in far.iter().enumerate() {
        while far.send(&frame(20 + tap)).is_ok() {}
    }
    for buffer in 0..16u64 {
        drivers[0].add(&[], &[(DATA + buffer * 0x1000, 2048)]);
    }
    net.serve(0);
    // A frame and its chain count one each.
    let each = usize::from(BUDGET) / 32 / 2;
    let from: Vec<_> =
        drivers[0].used().iter().map(|(_, length)| *length as usize - HEADER_BYTES - 20).collect();
    let fair: Vec<_> = (0..32).flat_map(|tap| std::iter::repeat_n(tap, each)).take(16).collect();
    assert_eq!(from, fair);
    assert!(drivers[0].was_notified(), "what is left is left for the next turn");
}

#[test]
fn a_frame_that_cannot_be_read_does_not_hold_up_those_behind_it() {
    let mut driver = Driver::new();
    let mut receiver = Receiver::new(driver.queue(), true, 1000);
    driver.add(&[], &[(DATA, 2048)]);
    // A directory can never be read.
    let broken = std::fs::File::open("/").unwrap();
    receiver.receive(&broken, &mut Budget::new(BUDGET));
    assert!(driver.used().is_empty() && !driver.was_notified(), "nothing turns in circles");
    // A socket whose other end turns to somebody else without having read says so once; what came before is still there.
    let (near, far) = wire();
    near.send(b"unread").unwrap();
    far.send(&frame(100)).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let elsewhere = directory.path().join("socket");
    let _elsewhere = UnixDatagram::bind(&elsewhere).unwrap();
    far.connect(&elsewhere).unwrap();
    receiver.receive(&near, &mut Budget::new(BUDGET));
    assert_eq!(driver.used(), [(0, 112)]);
}
