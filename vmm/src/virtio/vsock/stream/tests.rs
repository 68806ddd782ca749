use super::*;
use std::os::unix::net::UnixStream;

fn open_stream() -> (UnixStream, Stream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut stream = Stream::new(theirs.into(), 1, 2);
    stream.accept();
    (ours, stream)
}

#[test]
fn credit_survives_wrapping_and_lies() {
    let (_host, mut stream) = open_stream();
    let mut header = Header { buf_alloc: 1000, fwd_cnt: 0, ..Header::default() };
    stream.update_credit(&header);
    assert_eq!(stream.credit(), 1000);
    stream.sent = u32::MAX - 99;
    header.fwd_cnt = u32::MAX - 99;
    stream.update_credit(&header);
    stream.sent = stream.sent.wrapping_add(400);
    assert_eq!(stream.credit(), 600);
    // The guest claims to have taken what was never sent.
    header.fwd_cnt = stream.sent.wrapping_add(1);
    stream.update_credit(&header);
    assert_eq!(stream.credit(), 0);
    // It shrinks its buffer below what is on the way.
    header = Header { buf_alloc: 1, fwd_cnt: stream.sent.wrapping_sub(10), ..header };
    stream.update_credit(&header);
    assert_eq!(stream.credit(), 0);
}

#[test]
fn nothing_is_sent_without_credit() {
    let (mut host, stream) = open_stream();
    std::io::Write::write_all(&mut host, b"data").unwrap();
    assert!(!stream.has_packet());
}
