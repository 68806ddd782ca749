//! What the longest answers of an agent that wants the shim to run out of memory take of it.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use prost::Message;
use ravelin_proto::MAX_REPLY_BYTES;
use ravelin_proto::agent::{
    CreateResponse, DeleteResponse, Event, ListPidsResponse, ReadVolumeResponse, SetupSandboxResponse,
    StartResponse, StatsResponse, WaitResponse,
};

/// Most bytes that one answer may take.
const BOUND: usize = 8 << 20;

/// The system's allocator, which counts what is taken, and the most that was.
struct Counting;

static TAKEN: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let taken = TAKEN.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        MOST.fetch_max(taken, Ordering::Relaxed);
        // SAFETY: the caller vouches for the layout.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        TAKEN.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller vouches for the pointer and its layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Reads a message as the client does; how many bytes that took, at the most at once, beside the message.
fn cost<M: Message + Default>(message: &[u8]) -> usize {
    let before = TAKEN.load(Ordering::Relaxed);
    MOST.store(before, Ordering::Relaxed);
    // What is refused had its time to take memory too.
    let read = M::decode(message);
    drop(read);
    MOST.load(Ordering::Relaxed) - before
}

/// A message of the greatest length that consists of `part`, over and over.
fn of(part: impl Fn(usize) -> Vec<u8>) -> Vec<u8> {
    let mut message = Vec::with_capacity(MAX_REPLY_BYTES);
    for number in 0.. {
        let part = part(number);
        if message.len() + part.len() > MAX_REPLY_BYTES {
            break;
        }
        message.extend(part);
    }
    message
}

/// A field with a length, in wire format.
fn field(number: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![number << 3 | 2];
    prost::encoding::encode_varint(content.len() as u64, &mut bytes);
    bytes.extend(content);
    bytes
}

/// One test, since all would count each other's memory.
#[test]
fn the_longest_answers_take_bounded_memory() {
    let whole = vec![1; MAX_REPLY_BYTES - 4];
    // Each kind of field that grows: an empty message in a list, a map's entry with a key of its own, packed numbers, unpacked
    // numbers, bytes and text; and fields that nobody knows, nested ones too.
    let key = |number: usize| field(1, format!("{number:x}").as_bytes());
    let stat = of(|number| field(5, &key(number)));
    let memory = field(2, &stat[..stat.len() - 8]);
    let messages = [
        ("list", of(|_| field(5, b""))),
        ("map", memory),
        ("packed", field(1, &whole)),
        ("unpacked", of(|_| vec![1 << 3, 1])),
        ("text", field(2, &whole)),
        ("unknown", of(|_| field(15, b""))),
        ("groups", of(|_| vec![15 << 3 | 3])),
        ("one of", of(|_| field(1, &field(1, b"x")))),
    ];
    for (name, message) in &messages {
        let kinds = [
            ("SetupSandbox", cost::<SetupSandboxResponse>(message)),
            ("CreateContainer", cost::<CreateResponse>(message)),
            ("Start", cost::<StartResponse>(message)),
            ("Wait", cost::<WaitResponse>(message)),
            ("Delete", cost::<DeleteResponse>(message)),
            ("Stats", cost::<StatsResponse>(message)),
            ("ListPids", cost::<ListPidsResponse>(message)),
            ("ReadVolume", cost::<ReadVolumeResponse>(message)),
            ("Events", cost::<Event>(message)),
        ];
        for (kind, bytes) in kinds {
            println!("{kind}, {name}: {bytes} bytes");
            assert!(bytes < BOUND, "{kind}, {name}: {bytes} bytes");
        }
    }
}
