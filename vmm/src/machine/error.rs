//! What can go wrong while a machine is built.

use std::io;

use vm_memory::GuestMemoryError;

use super::{kernel, memory, mptable, vcpu};
use crate::virtio::net::NetError;

/// A machine that could not be built.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The configuration makes no machine.
    #[error("The machine's configuration is not acceptable: {0}")]
    Config(&'static str),
    /// Not the descriptors that the configuration asks for.
    #[error("The machine needs {expected} file descriptors but got {got}")]
    Descriptors {
        /// How many should have come.
        expected: usize,
        /// How many came.
        got: usize,
    },
    /// KVM refuses a step.
    #[error("KVM refuses to {step}")]
    Kvm {
        /// What was attempted.
        step: &'static str,
        /// What KVM says.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// This host's KVM lacks something that the machine is built on.
    #[error("This host's KVM lacks {0}")]
    Missing(&'static str),
    /// Guest memory.
    #[error("Cannot make the guest's memory")]
    Memory(#[source] memory::MemoryError),
    /// Guest memory's host address.
    #[error("Cannot find the guest's memory")]
    Region(#[source] GuestMemoryError),
    /// Kernel, initramfs, command line.
    #[error("Cannot load the guest's kernel")]
    Kernel(#[source] kernel::KernelError),
    /// The table of processors.
    #[error("Cannot describe the machine to the guest")]
    MpTable(#[source] mptable::MpTableError),
    /// A processor.
    #[error("Cannot make the machine's processors")]
    Vcpu(#[source] vcpu::setup::VcpuError),
    /// The network device.
    #[error("Cannot make the network device")]
    Net(#[source] NetError),
    /// Another device.
    #[error("Cannot make the {device} device")]
    Device {
        /// Its name.
        device: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// More devices than interrupt lines.
    #[error("There is no interrupt line for the {0} device")]
    NoLine(&'static str),
    /// A thread.
    #[error("Cannot start the machine's threads")]
    Thread(#[source] io::Error),
}

pub(super) fn kvm_error(step: &'static str) -> impl Fn(kvm_ioctls::Error) -> MachineError {
    move |source| MachineError::Kvm { step, source }
}

pub(super) fn device_error(device: &'static str) -> impl Fn(io::Error) -> MachineError {
    move |source| MachineError::Device { device, source }
}
