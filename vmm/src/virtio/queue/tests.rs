use super::*;
use crate::virtio::testing::{Driver, INDIRECT, SIZE};

const DATA: u64 = 0x20_0000;
const TABLE: u64 = 0x30_0000;

#[test]
fn a_chain_is_split_into_what_is_read_and_what_is_written() {
    let mut driver = Driver::new();
    let mut queue = driver.queue();
    let mut chain = Chain::default();
    assert_eq!(queue.pop(&mut chain), Ok(false));
    let head = driver.add(&[(DATA, 16), (DATA + 100, 4)], &[(DATA + 200, 8)]);
    assert_eq!(queue.pop(&mut chain), Ok(true));
    assert_eq!((chain.head, chain.readable.len(), chain.writable.len()), (head, 20, 8));
    queue.push_used(chain.head, 8).unwrap();
    assert_eq!(driver.used(), [(u32::from(head), 8)]);
    assert_eq!(queue.pop(&mut chain), Ok(false));
}

#[test]
fn a_chain_put_back_comes_again() {
    let mut driver = Driver::new();
    let mut queue = driver.queue();
    let mut chain = Chain::default();
    let head = driver.add(&[(DATA, 16)], &[]);
    assert_eq!(queue.pop(&mut chain), Ok(true));
    queue.undo_pop(1);
    assert_eq!(queue.pop(&mut chain), Ok(true));
    assert_eq!(chain.head, head);
}

/// Offers the chain at descriptor 0 and expects it back unused, counted, and followed by a good chain.
fn expect_malformed(name: &str, set_up: impl FnOnce(&mut Driver)) {
    let mut driver = Driver::new();
    let mut queue = driver.queue_with_limit(4096);
    set_up(&mut driver);
    driver.offer(0);
    driver.descriptor(driver.table(), 15, DATA, 8, 0, 0);
    driver.offer(15);
    let mut chain = Chain::default();
    assert_eq!(queue.pop(&mut chain), Ok(true), "{name}");
    assert_eq!(chain.head, 15, "{name}");
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
    let mut chain = Chain::default();
    assert_eq!(queue.pop(&mut chain), Ok(true));
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
    let driver = Driver::new();
    let mut queue = driver.queue();
    driver.set_available_index(SIZE + 1);
    let mut chain = Chain::default();
    assert_eq!(queue.pop(&mut chain), Err(QueueBroken));
    assert!(driver.interrupt.is_reset_needed());
    driver.set_available_index(0);
    assert_eq!(queue.pop(&mut chain), Ok(false), "a broken queue stays out of use");

    let mut driver = Driver::new();
    let mut queue = driver.queue();
    driver.offer(SIZE);
    assert_eq!(queue.pop(&mut chain), Err(QueueBroken));
    assert!(driver.used().is_empty());
}
