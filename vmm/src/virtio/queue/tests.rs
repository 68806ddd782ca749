use super::*;
use crate::virtio::testing::{Driver, INDIRECT, SIZE, take};

const DATA: u64 = 0x20_0000;
const TABLE: u64 = 0x30_0000;

const SPEC: QueueSpec =
    QueueSpec { size: SIZE, max_chain_bytes: 4096, signal_every: 64, malformed: Malformed::GiveBack };

#[test]
fn a_chain_is_split_into_what_is_read_and_what_is_written() {
    let mut driver = Driver::new();
    let mut queue = driver.queue();
    assert!(take(&mut queue).is_none());
    let head = driver.add(&[(DATA, 16), (DATA + 100, 4)], &[(DATA + 200, 8)]);
    let chain = take(&mut queue).unwrap();
    assert_eq!((chain.head, chain.readable.len(), chain.writable.len()), (head, 20, 8));
    queue.give_back(chain.head, 8);
    assert_eq!(driver.used(), [(u32::from(head), 8)]);
    assert!(take(&mut queue).is_none());
}

#[test]
fn a_chain_put_back_comes_again() {
    let mut driver = Driver::new();
    let mut queue = driver.queue();
    let heads = [driver.add(&[(DATA, 16)], &[]), driver.add(&[(DATA, 16)], &[])];
    let mut seen = Vec::new();
    let progress = queue.serve(&mut Budget::new(8), |chain| {
        seen.push(chain.head);
        if seen.len() == 1 { Verdict::Kept } else { Verdict::PutBack }
    });
    assert_eq!((progress, &seen[..]), (Progress::Stopped, &heads[..]));
    assert_eq!(take(&mut queue).unwrap().head, heads[1]);
    assert!(driver.used().is_empty());
}

#[test]
fn an_endless_supply_of_chains_ends_with_the_budget_and_is_gone_on_with() {
    let mut driver = Driver::new();
    let mut queue = driver.queue();
    for _ in 0..10 {
        driver.add(&[(DATA, 16)], &[]);
    }
    assert_eq!(queue.serve(&mut Budget::new(4), |_| Verdict::Used(0)), Progress::OutOfBudget);
    assert_eq!(driver.used().len(), 4);
    assert!(driver.was_notified(), "what is left over reschedules itself");
    assert_eq!(queue.serve(&mut Budget::new(100), |_| Verdict::Used(0)), Progress::Empty);
    assert_eq!(driver.used().len(), 6);
    assert!(!driver.was_notified());
}

#[test]
fn malformed_chains_are_part_of_the_budget() {
    let mut driver = Driver::new();
    let mut queue = driver.queue();
    for _ in 0..10 {
        driver.add(&[(64 << 20, 16)], &[]);
    }
    let progress = queue.serve(&mut Budget::new(4), |_| panic!("a malformed chain reached the device"));
    assert_eq!(progress, Progress::OutOfBudget);
    assert_eq!((driver.used().len(), driver.interrupt.guest_errors()), (4, 4));
}

#[test]
fn where_a_malformed_chain_would_pass_for_a_success_it_breaks_the_queue() {
    let mut driver = Driver::new();
    let mut queue = driver.queue_as(QueueSpec { malformed: Malformed::Break, ..SPEC });
    driver.add(&[(64 << 20, 16)], &[]);
    driver.add(&[(DATA, 16)], &[]);
    assert_eq!(queue.serve(&mut Budget::new(4), |_| Verdict::Used(0)), Progress::Broken);
    assert!(driver.interrupt.is_reset_needed());
    queue.give_back(1, 0);
    assert!(driver.used().is_empty(), "a broken queue stays out of use");
}

#[test]
fn the_guest_hears_of_what_was_given_back_as_often_as_the_device_wants() {
    for (signal_every, after_each) in [(1, [1, 1, 1]), (2, [0, 1, 0])] {
        let mut driver = Driver::new();
        let mut queue = driver.queue_as(QueueSpec { signal_every, ..SPEC });
        // The guest wants to hear of everything: its used event is where the device's index was.
        for (round, expected) in after_each.into_iter().enumerate() {
            let head = driver.add(&[(DATA, 16)], &[]);
            take(&mut queue).unwrap();
            driver.put(
                driver.available_ring() + 4 + u64::from(SIZE) * 2,
                &(round as u16 - round as u16 % signal_every).to_le_bytes(),
            );
            queue.give_back(head, 0);
            assert_eq!(driver.interrupt.status(), expected, "{signal_every}, {round}");
            driver.interrupt.acknowledge(u32::MAX);
        }
    }
}

/// Offers the chain at descriptor 0 and expects it back unused, counted, and followed by a good chain.
fn expect_malformed(name: &str, set_up: impl FnOnce(&mut Driver)) {
    let mut driver = Driver::new();
    let mut queue = driver.queue_as(SPEC);
    set_up(&mut driver);
    driver.offer(0);
    driver.descriptor(driver.table(), 15, DATA, 8, 0, 0);
    driver.offer(15);
    assert_eq!(take(&mut queue).unwrap().head, 15, "{name}");
    assert_eq!(driver.used(), [(0, 0)], "{name}");
    assert_eq!(driver.interrupt.guest_errors(), 1, "{name}");
    assert!(!driver.interrupt.is_reset_needed(), "{name}");
}

#[test]
fn malformed_chains_are_given_back_and_counted() {
    let (next, write) = (1, 2);
    expect_malformed("outside memory", |driver| {
        driver.descriptor(driver.table(), 0, 64 << 20, 8, 0, 0);
    });
    expect_malformed("across the end of memory", |driver| {
        driver.descriptor(driver.table(), 0, (64 << 20) - 4, 8, 0, 0);
    });
    expect_malformed("address overflow", |driver| {
        driver.descriptor(driver.table(), 0, u64::MAX - 3, 8, 0, 0);
    });
    expect_malformed("loop", |driver| {
        driver.descriptor(driver.table(), 0, DATA, 8, next, 1);
        driver.descriptor(driver.table(), 1, DATA, 8, next, 0);
    });
    expect_malformed("next outside the table", |driver| {
        driver.descriptor(driver.table(), 0, DATA, 8, next, SIZE);
    });
    expect_malformed("readable after writable", |driver| {
        driver.descriptor(driver.table(), 0, DATA, 8, next | write, 1);
        driver.descriptor(driver.table(), 1, DATA, 8, 0, 0);
    });
    expect_malformed("too many bytes", |driver| {
        driver.descriptor(driver.table(), 0, DATA, 4096, next, 1);
        driver.descriptor(driver.table(), 1, DATA, 1, 0, 0);
    });
    expect_malformed("more than 4 GiB", |driver| {
        driver.descriptor(driver.table(), 0, DATA, u32::MAX, next, 1);
        driver.descriptor(driver.table(), 1, DATA, u32::MAX, 0, 0);
    });
}

#[test]
fn indirect_tables_are_followed_once_and_no_further() {
    let (next, write) = (1, 2);
    let mut driver = Driver::new();
    let mut queue = driver.queue();
    driver.descriptor(driver.table(), 0, TABLE, 32, INDIRECT, 0);
    driver.descriptor(TABLE, 0, DATA, 8, next, 1);
    driver.descriptor(TABLE, 1, DATA, 9, write, 0);
    driver.offer(0);
    let chain = take(&mut queue).unwrap();
    assert_eq!((chain.readable.len(), chain.writable.len()), (8, 9));

    expect_malformed("indirect in indirect", |driver| {
        driver.descriptor(driver.table(), 0, TABLE, 32, INDIRECT, 0);
        driver.descriptor(TABLE, 0, TABLE, 32, INDIRECT, 0);
    });
    expect_malformed("empty table", |driver| {
        driver.descriptor(driver.table(), 0, TABLE, 0, INDIRECT, 0);
    });
    expect_malformed("table of odd size", |driver| {
        driver.descriptor(driver.table(), 0, TABLE, 17, INDIRECT, 0);
    });
    expect_malformed("table outside memory", |driver| {
        driver.descriptor(driver.table(), 0, 64 << 20, 32, INDIRECT, 0);
    });
    expect_malformed("loop in a table of the largest size", |driver| {
        driver.descriptor(driver.table(), 0, TABLE, 65535 * 16, INDIRECT, 0);
        driver.descriptor(TABLE, 0, DATA, 0, next, 0);
    });
}

#[test]
fn a_broken_ring_stops_the_queue_and_asks_for_a_reset() {
    let serve = |queue: &mut Virtqueue| queue.serve(&mut Budget::new(8), |_| Verdict::Used(0));
    let driver = Driver::new();
    let mut queue = driver.queue();
    driver.set_available_index(SIZE + 1);
    assert_eq!(serve(&mut queue), Progress::Broken);
    assert!(driver.interrupt.is_reset_needed());
    driver.set_available_index(0);
    assert_eq!(serve(&mut queue), Progress::Empty, "a broken queue stays out of use");

    let mut driver = Driver::new();
    let mut queue = driver.queue();
    driver.offer(SIZE);
    assert_eq!(serve(&mut queue), Progress::Broken);
    assert!(driver.used().is_empty());
}
