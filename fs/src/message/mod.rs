//! FUSE messages (`include/uapi/linux/fuse.h`, protocol 7.38), as they lie in a packet.

pub mod abi;
mod reply;
mod request;

pub use reply::{Reply, failure};
pub use request::{Body, Header, Request};

/// Most bytes of a file in one message.
pub const MAX_DATA: usize = 1 << 20;
/// Most bytes of a message, with its headers and names.
pub const MAX_MESSAGE: usize = MAX_DATA + 4096;
/// Bytes that a packet and its socket's bookkeeping take besides a file's bytes.
const OVERHEAD: usize = 4096;

/// Most bytes of a file in one message on a socket that holds so many back for its reader (`SO_SNDBUF`), in whole pages.
#[must_use]
pub fn data_bytes(socket_buffer: usize) -> usize {
    let pages = socket_buffer.saturating_sub(OVERHEAD) / abi::PAGE;
    (pages * abi::PAGE).clamp(abi::PAGE, MAX_DATA)
}

/// Bytes for messages, of which those behind the headers of a read or a write begin a page, so that `O_DIRECT` takes them.
#[derive(Debug)]
pub struct Buffer {
    bytes: Vec<u8>,
    start: usize,
}

impl Buffer {
    /// A buffer for requests.
    #[must_use]
    pub fn for_requests() -> Self {
        Self::new(abi::IN_HEADER + abi::WRITE_IN)
    }

    /// A buffer for replies.
    #[must_use]
    pub fn for_replies() -> Self {
        Self::new(abi::OUT_HEADER)
    }

    fn new(headers: usize) -> Self {
        // Pages that no message has touched are not there.
        let bytes = vec![0; MAX_MESSAGE + 2 * abi::PAGE];
        let first_page = bytes.as_ptr().align_offset(abi::PAGE) + abi::PAGE;
        Self { bytes, start: first_page - headers }
    }

    /// All of it.
    #[must_use]
    pub fn bytes(&mut self) -> &mut [u8] {
        self.bytes.get_mut(self.start..).and_then(|bytes| bytes.get_mut(..MAX_MESSAGE)).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_begins_a_page() {
        for (mut buffer, headers) in [(Buffer::for_requests(), 80), (Buffer::for_replies(), 16)] {
            let bytes = buffer.bytes();
            assert_eq!(bytes.len(), MAX_MESSAGE);
            assert_eq!(bytes[headers..].as_ptr().align_offset(abi::PAGE), 0);
        }
    }

    #[test]
    fn a_small_socket_carries_small_messages() {
        assert_eq!(data_bytes(212_992), 208_896);
        assert_eq!(data_bytes(8 << 20), MAX_DATA);
        assert_eq!(data_bytes(0), abi::PAGE);
    }
}
