//! A container's own `/etc/passwd`.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags, open, openat2};

/// Largest file that is looked at, in bytes.
const MAX_BYTES: u64 = 1 << 20;

/// The home directory of a user of the container, "/" if nothing is known: runc's answer.
#[must_use]
pub fn home(rootfs: &Path, uid: u32) -> String {
    // Names of people may be written in any encoding.
    let passwd = read(rootfs).unwrap_or_default();
    find(&String::from_utf8_lossy(&passwd), uid).unwrap_or_else(|| "/".to_owned())
}

/// Reads the file without leaving the root file system or waiting on anything but a plain file.
fn read(rootfs: &Path) -> Option<Vec<u8>> {
    // The process's user may be allowed to search the directory but not to read it.
    let root = open(rootfs, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = openat2(&root, "etc/passwd", flags, Mode::empty(), ResolveFlags::IN_ROOT).ok()?;
    let file = File::from(file);
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut passwd = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut passwd).ok()?;
    Some(passwd)
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
    use super::*;

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
}
