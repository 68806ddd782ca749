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

/// Bytes for any message. Those that no message has touched take no memory.
#[must_use]
pub fn buffer() -> Vec<u8> {
    vec![0; MAX_MESSAGE]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_socket_carries_small_messages() {
        assert_eq!(data_bytes(212_992), 208_896);
        assert_eq!(data_bytes(8 << 20), MAX_DATA);
        assert_eq!(data_bytes(0), abi::PAGE);
    }
}
