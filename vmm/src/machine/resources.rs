//! What a machine is made from: its configuration, checked, and the descriptors that come with it.

use std::fs::File;
use std::os::fd::OwnedFd;

use super::error::MachineError;
use crate::control::MachineConfig;

/// The descriptors of [`crate::control::Command::Boot`], by name.
#[derive(Debug)]
pub(super) struct Resources {
    pub kvm: OwnedFd,
    pub kernel: File,
    pub initramfs: File,
    pub scratch: File,
    pub taps: Vec<File>,
    pub console: Option<File>,
}

impl Resources {
    pub fn take(config: &MachineConfig, fds: Vec<OwnedFd>) -> Result<Self, MachineError> {
        let expected = 4 + usize::from(config.tap_queues) + usize::from(config.console);
        let got = fds.len();
        let wrong = || MachineError::Descriptors { expected, got };
        if got != expected {
            return Err(wrong());
        }
        let mut fds = fds.into_iter();
        let mut file = || fds.next().map(File::from).ok_or_else(wrong);
        Ok(Self {
            kvm: file()?.into(),
            kernel: file()?,
            initramfs: file()?,
            scratch: file()?,
            taps: (0..config.tap_queues).map(|_| file()).collect::<Result<_, _>>()?,
            console: if config.console { Some(file()?) } else { None },
        })
    }
}

/// Whether a guest lives in what a balloon leaves of its memory.
pub(super) fn leaves_enough(memory_mib: u32, balloon_mib: u32) -> bool {
    memory_mib.checked_sub(balloon_mib).is_some_and(|left| left >= 64)
}

/// Checks a configuration.
pub(super) fn check(config: &MachineConfig) -> Result<(), MachineError> {
    let problem = if !(1..=32).contains(&config.vcpus) {
        "there can be 1 to 32 virtual CPUs"
    } else if !(64..=131_072).contains(&config.memory_mib) {
        "memory can be 64 to 131072 MiB"
    } else if !leaves_enough(config.memory_mib, config.balloon_mib) {
        "the balloon must leave the guest 64 MiB"
    } else if !(1..=32).contains(&config.tap_queues) {
        "there can be 1 to 32 tap queues"
    } else if config.mtu < 68 {
        "the MTU must be at least 68"
    } else {
        return Ok(());
    };
    Err(MachineError::Config(problem))
}
