//! A container's own `/etc/passwd`.

use std::io::Read;
use std::os::fd::AsFd;

use rustix::fs::OFlags;

use crate::opening::Proc;

/// Largest file that is looked at, in bytes.
const MAX_BYTES: u64 = 1 << 20;

/// The home directory of a user of the container with this root directory, "/" if nothing is known: runc's answer. Never leaves
/// the root, and waits on nothing but a plain file.
#[must_use]
pub(super) fn home(proc: &Proc, root: impl AsFd, uid: u32) -> String {
    let mut passwd = Vec::new();
    if let Ok(file) = proc.regular(root, "etc/passwd", OFlags::RDONLY) {
        let _ = file.take(MAX_BYTES).read_to_end(&mut passwd);
    }
    // Names of people may be written in any encoding.
    find(&String::from_utf8_lossy(&passwd), uid).unwrap_or_else(|| "/".to_owned())
}

fn find(passwd: &str, uid: u32) -> Option<String> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':').skip(2);
        if fields.next()?.parse::<u32>().ok()? != uid {
            return None;
        }
        fields.nth(2).filter(|home| !home.is_empty()).map(str::to_owned)
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::opening::directory;

    fn home(root: &Path, uid: u32) -> String {
        super::home(&Proc::open().unwrap(), directory(root).unwrap(), uid)
    }

    #[test]
    fn homes_are_found() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbad line\nweb:x:33:33::/var/www:/bin/false\n";
        assert_eq!(find(passwd, 0).as_deref(), Some("/root"));
        assert_eq!(find(passwd, 33).as_deref(), Some("/var/www"));
        assert_eq!(find(passwd, 34), None);
    }

    #[test]
    fn a_name_in_another_encoding_hides_nobodys_home() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("etc")).unwrap();
        let passwd = b"jos\xe9:x:7:7:Jos\xe9:/home/j:/bin/sh\nroot:x:0:0:root:/root:/bin/sh\n";
        std::fs::write(root.path().join("etc/passwd"), passwd).unwrap();
        assert_eq!((home(root.path(), 0), home(root.path(), 7)), ("/root".to_owned(), "/home/j".to_owned()));
    }

    #[test]
    fn a_link_out_of_the_root_is_not_followed() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("etc")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", root.path().join("etc/passwd")).unwrap();
        assert_eq!(home(root.path(), 0), "/");
    }

    #[test]
    fn what_is_no_regular_file_is_not_read_and_not_waited_for() {
        use rustix::fs::{CWD, FileType, Mode, mknodat};
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("etc")).unwrap();
        mknodat(CWD, root.path().join("etc/passwd"), FileType::Fifo, Mode::RWXU, 0).unwrap();
        assert_eq!(home(root.path(), 0), "/");
    }
}
