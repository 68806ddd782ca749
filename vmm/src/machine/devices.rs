//! The machine's devices and the threads that own them.

use std::fs::File;
use std::io;
use std::sync::Arc;

use kvm_ioctls::{IoEventAddress, VmFd};

use super::Notice;
use super::error::{MachineError, device_error, kvm_error};
use super::layout::{DEVICE_IRQS, MMIO_START, MMIO_WINDOW};
use super::memory::GuestMemory;
use super::vcpu::gate::Gate;
use crate::control::MachineConfig;
use crate::event::Mailbox;
use crate::jail::seccomp::Thread;
use crate::virtio::Device;
use crate::virtio::balloon::Balloon;
use crate::virtio::block::Block;
use crate::virtio::block::extents::Extents;
use crate::virtio::block::scratch::Scratch;
use crate::virtio::fs::{self, Fs};
use crate::virtio::mmio::MmioDevice;
use crate::virtio::net::Net;
use crate::virtio::rng::Rng;
use crate::virtio::thread::{DeviceThread, Handle};
use crate::virtio::transport::QUEUE_NOTIFY;
use crate::virtio::vsock::{self, Vsock};

/// All devices, served by their threads.
pub(super) struct Devices {
    /// Their registers, in the order of their addresses.
    pub windows: Vec<Arc<MmioDevice>>,
    pub threads: Vec<Handle>,
    pub layers: Extents,
    pub volumes: Extents,
    pub vsock: Arc<Mailbox<vsock::Command>>,
    /// The balloon's registers, through which it is steered.
    pub balloon: Arc<MmioDevice>,
    pub fs: Arc<Mailbox<fs::Attach>>,
}

/// Makes all devices of a machine whose processors pass `gate`.
pub(super) fn make(
    vm: &VmFd,
    memory: &GuestMemory,
    config: &MachineConfig,
    (scratch, taps): (File, Vec<File>),
    gate: &Arc<Gate>,
    notices: &Arc<Mailbox<Notice>>,
) -> Result<Devices, MachineError> {
    let thread = |thread| DeviceThread::new(thread).map_err(MachineError::Thread);
    // One for what programs read and write, one for the network, which is busiest, and one for the rest. None of them
    // ever waits for a device of the host's; a disk's other threads do.
    let (mut disks, mut network, mut others) =
        (thread(Thread::Disks)?, thread(Thread::Net)?, thread(Thread::Sockets)?);
    let (layers, volumes) = (Extents::new(true), Extents::new(false));
    let scratch = Scratch::new(scratch).map_err(device_error("scratch"))?;
    let net = Net::new(taps, config.mac, config.mtu).map_err(MachineError::Net)?;
    let vsock = Mailbox::new().map_err(device_error("vsock"))?;
    let fs = Mailbox::new().map_err(device_error("fs"))?;
    let answers = Arc::clone(notices);
    let answer = Box::new(move |connected| answers.send(Notice::Connected(connected)));

    let gate = Arc::clone(gate);
    let completed: Arc<dyn Fn() + Send + Sync> = Arc::new(move || gate.look_again());
    let mut windows = Vec::new();
    let mut add = |thread: &mut DeviceThread, device: Box<dyn Device>| {
        let name = device.describe().name;
        let window = thread.add(device, memory, &completed).map_err(device_error(name))?;
        let (address, irq) = place(windows.len()).ok_or(MachineError::NoLine(name))?;
        wire(vm, &window, address, irq)?;
        let window = Arc::new(window);
        windows.push(Arc::clone(&window));
        Ok::<_, MachineError>(window)
    };
    let block = |name, storage| Block::new(name, storage).map(Box::new).map_err(device_error(name));
    // The order is part of the machine: it decides on names, addresses and interrupt lines in the guest.
    add(&mut disks, block("layers", Box::new(layers.clone()))?)?;
    add(&mut disks, block("scratch", Box::new(scratch))?)?;
    add(&mut disks, block("volumes", Box::new(volumes.clone()))?)?;
    add(&mut network, Box::new(net))?;
    add(&mut others, Box::new(Vsock::new(Arc::clone(&vsock), answer)))?;
    add(&mut others, Box::<Rng>::default())?;
    let balloon = add(&mut others, Box::new(Balloon::new(config.balloon_mib)))?;
    add(&mut others, Box::new(Fs::new(Arc::clone(&fs))))?;

    let start = |thread: DeviceThread| {
        let notices = Arc::clone(notices);
        let failed = move |error: io::Error| notices.send(Notice::ThreadFailed(error));
        thread.start(failed).map_err(MachineError::Thread)
    };
    let threads = [disks, network, others].into_iter().map(start).collect::<Result<_, _>>()?;
    Ok(Devices { windows, threads, layers, volumes, vsock, balloon, fs })
}

/// Address and interrupt line of the device at a position on the bus.
pub(super) fn place(position: usize) -> Option<(u64, u32)> {
    DEVICE_IRQS.get(position).map(|irq| (MMIO_START + MMIO_WINDOW * position as u64, *irq))
}

/// Ties a device's interrupt and its queues' notifications to the machine.
fn wire(vm: &VmFd, device: &MmioDevice, address: u64, irq: u32) -> Result<(), MachineError> {
    let error = device_error(device.name());
    let line = device.interrupt().line().for_kvm().map_err(&error)?;
    vm.register_irqfd(&line, irq).map_err(kvm_error("tie an interrupt line to a device"))?;
    let register = IoEventAddress::Mmio(address + QUEUE_NOTIFY);
    for (queue, notification) in (0u32..).zip(device.notifications().iter()) {
        let event = notification.for_kvm().map_err(&error)?;
        vm.register_ioevent(&event, &register, queue).map_err(kvm_error("tie a queue to a device"))?;
    }
    Ok(())
}
