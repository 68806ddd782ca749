//! The rights of root that the shim keeps.

use std::io;

use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, remove_capability_from_bounding_set, set_capabilities,
    set_no_new_privs,
};

/// What is kept, and for what.
const KEPT: [(CapabilitySet, &str); 12] = [
    (
        CapabilitySet::SYS_ADMIN,
        "namespaces, in which the machine and mkfs.erofs confine themselves, and the pod's network",
    ),
    (
        CapabilitySet::NET_ADMIN,
        "the tap, the redirect between it and the pod's interface, and the forwarding of ports",
    ),
    (CapabilitySet::SETUID, "the users that the machine and mkfs.erofs become"),
    (CapabilitySet::SETGID, "their groups"),
    (CapabilitySet::SETPCAP, "that they give up what they may do"),
    (CapabilitySet::SYS_RESOURCE, "limits and the out-of-memory score of the machine"),
    (CapabilitySet::KILL, "the end of the machine, which is another user's"),
    (
        CapabilitySet::CHOWN,
        "images of layers, which are mkfs.erofs's user's while they are made, and files that the file server gives away",
    ),
    (CapabilitySet::FOWNER, "the file server: modes, times and attributes of all owners' files"),
    (CapabilitySet::FSETID, "the file server: set-id bits stay where the guest's kernel says that they do"),
    (CapabilitySet::DAC_READ_SEARCH, "volumes and layers, whoever their files belong to"),
    (
        CapabilitySet::DAC_OVERRIDE,
        "fifos, logs and termination messages, wherever containerd and the kubelet have put them",
    ),
];

/// Gives up everything that is not in [`KEPT`], for good: for this thread, those that it makes and the programs that they
/// run. To be called while the process has one thread.
///
/// # Errors
/// When the kernel refuses.
pub fn give_up() -> io::Result<()> {
    // containerd itself may have fewer.
    let kept = kept() & capabilities(None)?.permitted;
    for number in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        if kept.contains(capability) {
            continue;
        }
        match remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            // The kernel knows no more of them.
            Err(Errno::INVAL) => break,
            Err(errno) => return Err(errno.into()),
        }
    }
    set_capabilities(
        None,
        CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() },
    )?;
    Ok(set_no_new_privs(true)?)
}

fn kept() -> CapabilitySet {
    KEPT.iter().fold(CapabilitySet::empty(), |kept, (capability, _)| kept | *capability)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// The test below that runs in a process of its own.
    const ALONE: &str = "privileges::capabilities::tests::in_a_process_of_its_own";

    #[test]
    fn what_is_given_up_is_gone_and_no_program_gets_it_back() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: this needs root");
            return;
        }
        let alone = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", ALONE, "--ignored", "--nocapture", "--test-threads=1"])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&alone.stdout).into_owned();
        let left = kept() & capabilities(None).unwrap().permitted;
        assert!(!left.is_empty());
        for set in ["CapPrm", "CapEff", "CapBnd"] {
            assert!(said.contains(&format!("{set}:\t{:016x}", left.bits())), "{said}");
        }
        assert!(said.contains("NoNewPrivs:\t1"), "{said}");
    }

    #[test]
    #[ignore = "another test runs it in a process of its own"]
    fn in_a_process_of_its_own() {
        give_up().unwrap();
        print!(
            "{}",
            String::from_utf8(Command::new("cat").arg("/proc/self/status").output().unwrap().stdout).unwrap()
        );
    }
}
