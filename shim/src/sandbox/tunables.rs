//! The node's kernel settings that a pod would see with a runtime that shares the node's kernel.
//!
//! Only what has no namespace of its own and bounds nothing but the pod's own machine: a guest that takes it can hurt
//! itself alone. Programs rely on several of them: the kubelet and systemd set them on every node, and administrators
//! raise others for databases, search engines and the like.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// The settings that pods take over from their node, by their paths below `/proc/sys`.
const TUNABLES: [&str; 19] = [
    // The kubelet's. Its `kernel.panic_on_oops` the guest's kernel is built with, whatever the node's does.
    "vm/overcommit_memory",
    // systemd's.
    "fs/file-max",
    "fs/nr_open",
    "fs/protected_fifos",
    "fs/protected_hardlinks",
    "fs/protected_regular",
    "fs/protected_symlinks",
    "vm/max_map_count",
    // Administrators'.
    "fs/aio-max-nr",
    "fs/inotify/max_queued_events",
    "fs/inotify/max_user_instances",
    "fs/inotify/max_user_watches",
    "net/core/rmem_default",
    "net/core/rmem_max",
    "net/core/wmem_default",
    "net/core/wmem_max",
    // A new network namespace begins with the node's.
    "net/ipv4/tcp_rmem",
    "net/ipv4/tcp_wmem",
    "vm/overcommit_ratio",
];

/// Longest value, in bytes.
const MAX_VALUE: u64 = 256;

/// The node's values, by dotted name; without those that the node's kernel does not have.
#[must_use]
pub fn of_the_node() -> HashMap<String, String> {
    read(Path::new("/proc/sys"))
}

fn read(directory: &Path) -> HashMap<String, String> {
    let mut values = HashMap::new();
    for name in TUNABLES {
        let mut value = String::new();
        let read =
            File::open(directory.join(name)).and_then(|file| file.take(MAX_VALUE).read_to_string(&mut value));
        let value = value.trim();
        if read.is_ok() && !value.is_empty() {
            values.insert(name.replace('/', "."), value.to_owned());
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_by_name_and_missing_ones_left_out() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("net/ipv4")).unwrap();
        std::fs::create_dir_all(root.path().join("vm")).unwrap();
        std::fs::write(root.path().join("net/ipv4/tcp_rmem"), "4096\t131072\t6291456\n").unwrap();
        std::fs::write(root.path().join("vm/max_map_count"), "262144\n").unwrap();
        std::fs::write(root.path().join("vm/overcommit_memory"), "\n").unwrap();
        std::fs::write(root.path().join("vm/panic_on_oom"), "2\n").unwrap();
        let mut values: Vec<_> = read(root.path()).into_iter().collect();
        values.sort();
        let expected = [("net.ipv4.tcp_rmem", "4096\t131072\t6291456"), ("vm.max_map_count", "262144")];
        assert_eq!(values, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }
}
