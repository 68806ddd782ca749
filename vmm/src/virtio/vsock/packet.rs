//! The header in front of every vsock packet (virtio 1.3 §5.10.6).

/// Length of a header.
pub const HEADER_BYTES: usize = 44;

/// The host's address.
pub const HOST_CID: u64 = 2;
/// The guest's address.
pub const GUEST_CID: u64 = 3;

/// `VIRTIO_VSOCK_TYPE_STREAM`.
pub const TYPE_STREAM: u16 = 1;

/// `VIRTIO_VSOCK_OP_REQUEST`.
pub const OP_REQUEST: u16 = 1;
/// `VIRTIO_VSOCK_OP_RESPONSE`.
pub const OP_RESPONSE: u16 = 2;
/// `VIRTIO_VSOCK_OP_RST`.
pub const OP_RST: u16 = 3;
/// `VIRTIO_VSOCK_OP_SHUTDOWN`.
pub const OP_SHUTDOWN: u16 = 4;
/// `VIRTIO_VSOCK_OP_RW`.
pub const OP_RW: u16 = 5;
/// `VIRTIO_VSOCK_OP_CREDIT_UPDATE`.
pub const OP_CREDIT_UPDATE: u16 = 6;
/// `VIRTIO_VSOCK_OP_CREDIT_REQUEST`.
pub const OP_CREDIT_REQUEST: u16 = 7;

/// The sender of a shutdown receives no more.
pub const SHUTDOWN_RECEIVE: u32 = 1;
/// The sender of a shutdown sends no more.
pub const SHUTDOWN_SEND: u32 = 2;
/// Both.
pub const SHUTDOWN_BOTH: u32 = 3;

/// A packet's header.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Header {
    /// Sender's address.
    pub src_cid: u64,
    /// Receiver's address.
    pub dst_cid: u64,
    /// Sender's port.
    pub src_port: u32,
    /// Receiver's port.
    pub dst_port: u32,
    /// Bytes of data that follow.
    pub len: u32,
    /// Kind of socket.
    pub kind: u16,
    /// Operation.
    pub op: u16,
    /// Of the operation.
    pub flags: u32,
    /// Sender's buffer space.
    pub buf_alloc: u32,
    /// Bytes that the sender took out of its buffer, ever, wrapping.
    pub fwd_cnt: u32,
}

impl Header {
    /// Reads a header.
    #[must_use]
    pub fn parse(bytes: &[u8; HEADER_BYTES]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k] = words(bytes);
        let long = |low: u32, high: u32| u64::from(high) << 32 | u64::from(low);
        Self {
            src_cid: long(a, b),
            dst_cid: long(c, d),
            src_port: e,
            dst_port: f,
            len: g,
            kind: (h & 0xffff) as u16,
            op: (h >> 16) as u16,
            flags: i,
            buf_alloc: j,
            fwd_cnt: k,
        }
    }

    /// Writes a header.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let low = |value: u64| (value & 0xffff_ffff) as u32;
        let words = [
            low(self.src_cid),
            (self.src_cid >> 32) as u32,
            low(self.dst_cid),
            (self.dst_cid >> 32) as u32,
            self.src_port,
            self.dst_port,
            self.len,
            u32::from(self.kind) | u32::from(self.op) << 16,
            self.flags,
            self.buf_alloc,
            self.fwd_cnt,
        ];
        let mut bytes = [0; HEADER_BYTES];
        for (target, word) in bytes.chunks_exact_mut(4).zip(words) {
            target.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// A packet of the host to the guest's `guest_port`.
    #[must_use]
    pub fn to_guest(host_port: u32, guest_port: u32, op: u16) -> Self {
        Self {
            src_cid: HOST_CID,
            dst_cid: GUEST_CID,
            src_port: host_port,
            dst_port: guest_port,
            kind: TYPE_STREAM,
            op,
            ..Self::default()
        }
    }

    /// The reset that answers this packet of the guest.
    #[must_use]
    pub fn reset(&self) -> Self {
        Self { kind: self.kind, ..Self::to_guest(self.dst_port, self.src_port, OP_RST) }
    }
}

fn words(bytes: &[u8; HEADER_BYTES]) -> [u32; HEADER_BYTES / 4] {
    let mut words = [0; HEADER_BYTES / 4];
    for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(4)) {
        *word = chunk.first_chunk().map_or(0, |chunk| u32::from_le_bytes(*chunk));
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_survives_the_wire() {
        let header = Header {
            src_cid: 0x1122_3344_5566_7788,
            dst_cid: 3,
            src_port: 4,
            dst_port: 5,
            len: 6,
            kind: 7,
            op: 8,
            flags: 9,
            buf_alloc: 10,
            fwd_cnt: 11,
        };
        let bytes = header.encode();
        assert_eq!(Header::parse(&bytes), header);
        assert_eq!(bytes[0], 0x88);
        assert_eq!((bytes[28], bytes[30]), (7, 8));
    }
}
