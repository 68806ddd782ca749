//! Requests: everything in them comes from the guest.

use std::ffi::CStr;

use rustix::io::Errno;

use super::abi::IN_HEADER;

/// `struct fuse_in_header`.
#[derive(Debug, Clone, Copy)]
pub struct Header {
    /// Length in bytes, with this header.
    pub len: u32,
    /// What is asked for ([`super::abi::op`]).
    pub opcode: u32,
    /// Names the request.
    pub unique: u64,
    /// The node that it is about.
    pub node: u64,
    /// The user who asks, as the guest says.
    pub uid: u32,
    /// The user's group.
    pub gid: u32,
}

/// A request of the guest.
#[derive(Debug)]
pub struct Request<'a> {
    /// Its header.
    pub header: Header,
    /// What follows the header.
    pub body: Body<'a>,
}

impl<'a> Request<'a> {
    /// The request in a packet; `None` if it is shorter than a header.
    #[must_use]
    pub fn parse(packet: &'a [u8]) -> Option<Self> {
        let (header, body) = packet.split_at_checked(IN_HEADER)?;
        let mut fields = Body(header);
        let header = Header {
            len: fields.u32().ok()?,
            opcode: fields.u32().ok()?,
            unique: fields.u64().ok()?,
            node: fields.u64().ok()?,
            uid: fields.u32().ok()?,
            gid: fields.u32().ok()?,
        };
        Some(Self { header, body: Body(body) })
    }
}

/// The rest of a request, read from the front. What is not there is `EINVAL`.
#[derive(Debug, Clone)]
pub struct Body<'a>(&'a [u8]);

impl<'a> Body<'a> {
    /// A number of 32 bits.
    ///
    /// # Errors
    /// `EINVAL` at the end.
    pub fn u32(&mut self) -> Result<u32, Errno> {
        self.array().map(u32::from_le_bytes)
    }

    /// A number of 64 bits.
    ///
    /// # Errors
    /// `EINVAL` at the end.
    pub fn u64(&mut self) -> Result<u64, Errno> {
        self.array().map(u64::from_le_bytes)
    }

    /// Passes so many bytes over.
    ///
    /// # Errors
    /// `EINVAL` when there are fewer.
    pub fn skip(&mut self, length: usize) -> Result<(), Errno> {
        self.bytes(length).map(drop)
    }

    /// So many bytes.
    ///
    /// # Errors
    /// `EINVAL` when there are fewer.
    pub fn bytes(&mut self, length: usize) -> Result<&'a [u8], Errno> {
        let (bytes, rest) = self.0.split_at_checked(length).ok_or(Errno::INVAL)?;
        self.0 = rest;
        Ok(bytes)
    }

    /// A text that ends with a zero byte.
    ///
    /// # Errors
    /// `EINVAL` when there is no such byte.
    pub fn text(&mut self) -> Result<&'a CStr, Errno> {
        let text = CStr::from_bytes_until_nul(self.0).map_err(|_| Errno::INVAL)?;
        self.skip(text.count_bytes() + 1)?;
        Ok(text)
    }

    /// The name of a file in a directory: not empty, of one component, and neither `.` nor `..`, which the guest's kernel
    /// resolves by itself.
    ///
    /// # Errors
    /// `EINVAL` for what is no name, `ENAMETOOLONG` for one of more than 255 bytes.
    pub fn name(&mut self) -> Result<&'a CStr, Errno> {
        let name = self.text()?;
        let bytes = name.to_bytes();
        if bytes.is_empty() || bytes == b"." || bytes == b".." || bytes.contains(&b'/') {
            return Err(Errno::INVAL);
        }
        if bytes.len() > 255 { Err(Errno::NAMETOOLONG) } else { Ok(name) }
    }

    /// How many bytes are left.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether none is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Errno> {
        self.bytes(N)?.try_into().map_err(|_| Errno::INVAL)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_one_component() {
        for name in [&b"\0"[..], b".\0", b"..\0", b"a/b\0", b"/\0", b"../a\0", b"endless", b""] {
            assert_eq!(Body(name).name(), Err(Errno::INVAL), "{name:?}");
        }
        for name in [&b"a\0"[..], b"...\0", b"..a\0", b"\xff\x01\0", b" \0"] {
            assert!(Body(name).name().is_ok(), "{name:?}");
        }
        let long = [&[b'x'; 255][..], b"\0"].concat();
        assert!(Body(&long).name().is_ok());
        let longer = [&[b'x'; 256][..], b"\0"].concat();
        assert_eq!(Body(&longer).name(), Err(Errno::NAMETOOLONG));
    }

    #[test]
    fn what_is_not_there_is_not_read() {
        let mut body = Body(&[1, 0, 0, 0, 2]);
        assert_eq!(body.u32(), Ok(1));
        assert_eq!(body.u32(), Err(Errno::INVAL));
        assert_eq!(body.bytes(1), Ok(&[2][..]));
        assert_eq!(body.skip(usize::MAX), Err(Errno::INVAL));
        assert!(body.is_empty());
        assert!(Request::parse(&[0; 39]).is_none());
    }
}
