//! The AppArmor profile of the program that a process is about to run.

use std::io;

/// `lsm_set_self_attr(2)`, since Linux 6.8.
const SYS_LSM_SET_SELF_ATTR: libc::c_long = 460;
/// `LSM_ATTR_EXEC` and `LSM_ID_APPARMOR` of linux/lsm.h.
const ATTRIBUTE_OF_EXEC: u32 = 101;
const APPARMOR: u64 = 104;

/// Puts what this process executes next under the profile `name`. The call needs no file of `/proc`, which is the container's
/// by now and may be anything.
///
/// # Errors
///
/// When the kernel has no AppArmor or no such profile.
pub(super) fn for_the_next_program(name: &str) -> io::Result<()> {
    let request = request(name);
    let length = u32::try_from(request.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the call reads `length` bytes from a buffer of that many, which lives through it.
    let set = unsafe { libc::syscall(SYS_LSM_SET_SELF_ATTR, ATTRIBUTE_OF_EXEC, request.as_ptr(), length, 0) };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `struct lsm_ctx` of linux/lsm.h: whose attribute, flags, the length of all, the length of the value, the value.
fn request(name: &str) -> Vec<u8> {
    const HEADER: usize = 4 * size_of::<u64>();
    let value = format!("exec {name}");
    let mut request = Vec::with_capacity(HEADER + value.len());
    for number in [APPARMOR, 0, (HEADER + value.len()) as u64, value.len() as u64] {
        request.extend(number.to_ne_bytes());
    }
    request.extend(value.as_bytes());
    request
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_says_its_lengths_and_ends_with_the_profile() {
        let request = request("a b");
        assert_eq!(
            request.get(16..32),
            Some([40_u64.to_ne_bytes(), 8_u64.to_ne_bytes()].concat().as_slice())
        );
        assert_eq!(request.get(32..), Some(&b"exec a b"[..]));
    }

    #[test]
    fn a_profile_that_is_not_there_is_not_taken_for_none() {
        for_the_next_program("ravelin-test-no-such-profile").unwrap_err();
    }
}
