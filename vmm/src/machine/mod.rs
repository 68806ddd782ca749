//! One machine: memory, processors, devices, put together by [`Machine::build`] and set going by [`Machine::start`].

pub mod bus;
pub mod cmdline;
pub mod console;
pub mod cpuid;
pub mod exits;
pub mod image;
pub mod kernel;
mod kvm;
pub mod last_words;
pub mod layout;
pub mod memory;
pub mod mptable;
pub mod vcpu;

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use kvm_ioctls::{IoEventAddress, VcpuFd, VmFd};
use vm_memory::GuestMemoryError;

use crate::control::{ExtentDisk, MachineConfig};
use crate::event::{Mailbox, Poller, Wake};
use crate::virtio::Device;
use crate::virtio::balloon::Balloon;
use crate::virtio::block::Block;
use crate::virtio::block::extents::Extents;
use crate::virtio::block::scratch::Scratch;
use crate::virtio::net::{Net, NetError};
use crate::virtio::rng::Rng;
use crate::virtio::slot::Slot;
use crate::virtio::transport::QUEUE_NOTIFY;
use crate::virtio::vsock::{self, Connected, Vsock};
use bus::Bus;
use console::Console;
use layout::{DEVICE_IRQS, MMIO_START, MMIO_WINDOW, SERIAL_IRQ};
use memory::GuestMemory;
use vcpu::{Shared, VcpuEvent, Vcpus};

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
    Vcpu(#[source] vcpu::VcpuError),
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
    /// A thread.
    #[error("Cannot start the machine's threads")]
    Thread(#[source] io::Error),
}

/// What the machine's parts tell its owner.
#[derive(Debug)]
pub enum Notice {
    /// From a processor.
    Vcpu(VcpuEvent),
    /// From the socket device.
    Connected(Connected),
}

/// The descriptors of [`crate::control::Command::Boot`], by name.
#[derive(Debug)]
struct Resources {
    kvm: OwnedFd,
    kernel: File,
    initramfs: File,
    scratch: File,
    taps: Vec<File>,
    console: Option<File>,
}

impl Resources {
    fn take(config: &MachineConfig, fds: Vec<OwnedFd>) -> Result<Self, MachineError> {
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

fn check(config: &MachineConfig) -> Result<(), MachineError> {
    let problem = if !(1..=32).contains(&config.vcpus) {
        "there can be 1 to 32 virtual CPUs"
    } else if !(64..=131_072).contains(&config.memory_mib) {
        "memory can be 64 to 131072 MiB"
    } else if !(1..=32).contains(&config.tap_queues) {
        "there can be 1 to 32 tap queues"
    } else if config.mtu < 68 {
        "the MTU must be at least 68"
    } else {
        return Ok(());
    };
    Err(MachineError::Config(problem))
}

/// A machine. It is never taken apart: it ends with its process.
#[derive(Debug)]
pub struct Machine {
    // Dropping it would close the virtual machine under its running processors.
    _vm: VmFd,
    memory: GuestMemory,
    state: State,
    /// State that processors share.
    pub shared: Arc<Shared>,
    slots: Vec<Arc<Slot>>,
    console: Option<Arc<Console>>,
    layers: Extents,
    volumes: Extents,
    /// The socket device's commands.
    pub vsock: Arc<Mailbox<vsock::Command>>,
    /// Bytes that the guest sent through sockets and the host has not yet taken.
    pub vsock_backlog: Arc<AtomicUsize>,
}

#[derive(Debug)]
enum State {
    Built(Vec<VcpuFd>),
    Running(Vcpus),
}

/// Which event loop a device is served by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Loop {
    /// The owner's.
    Main,
    /// That of the network, which is busiest.
    Net,
    /// That of the disk that programs are read from, which must not wait for the others.
    Layers,
    /// That of the disks that are written and flushed, which takes its time.
    Disks,
}

impl Machine {
    /// Builds the machine of [`crate::control::Command::Boot`]. Devices that the owner's thread serves are added to
    /// `poller`, with their position on the bus as the owner.
    ///
    /// # Errors
    /// When the configuration, a descriptor or the host is not what it has to be.
    pub fn build(
        config: &MachineConfig,
        fds: Vec<OwnedFd>,
        poller: &Poller,
        notices: &Arc<Mailbox<Notice>>,
    ) -> Result<Self, MachineError> {
        check(config)?;
        let mut resources = Resources::take(config, fds)?;
        let host = kvm::open_kvm(resources.kvm)?;
        let memory = memory::allocate(config.memory_mib).map_err(MachineError::Memory)?;
        let vm = kvm::create_vm(&host)?;
        // Before the interrupt controllers: once anything sits on KVM's I/O bus, the next memory slot waits for a grace
        // period of several milliseconds on recent hosts.
        kvm::add_memory(&vm, &memory)?;
        vm.create_irq_chip().map_err(kvm_error("make the interrupt controllers"))?;
        let vcpus = kvm::create_vcpus(&host, &vm, config.vcpus)?;

        let vsock = Mailbox::new().map_err(device_error("vsock"))?;
        let vsock_backlog = Arc::new(AtomicUsize::new(0));
        let (layers, volumes) = (Extents::new(true), Extents::new(false));
        let scratch = Scratch::new(resources.scratch).map_err(device_error("scratch"))?;
        let answers = Arc::clone(notices);
        let answer = Box::new(move |connected| answers.send(Notice::Connected(connected)));
        // The order is part of the machine: it decides on names, addresses and interrupt lines in the guest.
        let devices: [(Loop, Box<dyn Device>); DEVICE_IRQS.len()] = [
            (Loop::Layers, Box::new(Block::new("layers", Box::new(layers.clone())))),
            (Loop::Disks, Box::new(Block::new("scratch", Box::new(scratch)))),
            (Loop::Disks, Box::new(Block::new("volumes", Box::new(volumes.clone())))),
            (
                Loop::Net,
                Box::new(Net::new(resources.taps, config.mac, config.mtu).map_err(MachineError::Net)?),
            ),
            (
                Loop::Main,
                Box::new(
                    Vsock::new(Arc::clone(&vsock), answer, Arc::clone(&vsock_backlog))
                        .map_err(device_error("vsock"))?,
                ),
            ),
            (Loop::Main, Box::new(Rng::default())),
            (Loop::Main, Box::new(Balloon::default())),
        ];
        let mut slots = Vec::with_capacity(devices.len());
        let mut places = Vec::with_capacity(devices.len());
        let mut loops = Vec::with_capacity(devices.len());
        for (which, device) in devices {
            let name = device.name();
            let slot = Slot::new(device, memory.clone()).map_err(device_error(name))?;
            let place = (MMIO_START + MMIO_WINDOW * slots.len() as u64, DEVICE_IRQS[slots.len()]);
            wire(&vm, &slot, place.0, place.1)?;
            slots.push(Arc::new(slot));
            places.push(place);
            loops.push(which);
        }
        attach(&slots, &loops, poller)?;

        let console = match resources.console.take() {
            Some(pipe) => Some(Arc::new(make_console(&vm, pipe)?)),
            None => None,
        };
        let command_line = cmdline::build(&places, console.is_some(), &config.extra_cmdline);
        let entry = kernel::load(&memory, &mut resources.kernel, &resources.initramfs, &command_line)
            .map_err(MachineError::Kernel)?;
        mptable::write(&memory, config.vcpus).map_err(MachineError::MpTable)?;
        if let Some(first) = vcpus.first() {
            vcpu::enter_kernel(first, &memory, entry).map_err(MachineError::Vcpu)?;
        }

        let reports = Arc::clone(notices);
        let report = Box::new(move |event| reports.send(Notice::Vcpu(event)));
        let shared = Arc::new(Shared::new(Bus::new(slots.clone(), console.clone()), report));
        Ok(Self {
            _vm: vm,
            memory,
            state: State::Built(vcpus),
            shared,
            slots,
            console,
            layers,
            volumes,
            vsock,
            vsock_backlog,
        })
    }

    /// Lets the processors run, the first from the kernel's entry point on.
    ///
    /// # Errors
    /// When the host has no more threads.
    pub fn start(&mut self) -> Result<(), MachineError> {
        if let State::Built(vcpus) = &mut self.state {
            let vcpus = Vcpus::start(std::mem::take(vcpus), &self.shared).map_err(MachineError::Thread)?;
            self.state = State::Running(vcpus);
        }
        Ok(())
    }

    /// The running processors.
    #[must_use]
    pub fn vcpus(&self) -> Option<&Vcpus> {
        match &self.state {
            State::Running(vcpus) => Some(vcpus),
            State::Built(_) => None,
        }
    }

    /// The device at a position on the bus.
    #[must_use]
    pub fn slot(&self, position: u32) -> Option<&Slot> {
        self.slots.get(position as usize).map(Arc::as_ref)
    }

    /// All devices.
    #[must_use]
    pub fn slots(&self) -> &[Arc<Slot>] {
        &self.slots
    }

    /// The debug console, if there is one.
    #[must_use]
    pub fn console(&self) -> Option<&Console> {
        self.console.as_deref()
    }

    /// What the guest's kernel said last, if it panicked.
    #[must_use]
    pub fn last_words(&self) -> Vec<String> {
        last_words::read(&self.memory)
    }

    /// The extents of a disk.
    #[must_use]
    pub fn extents(&self, disk: ExtentDisk) -> &Extents {
        match disk {
            ExtentDisk::Layers => &self.layers,
            ExtentDisk::Volumes => &self.volumes,
        }
    }
}

fn kvm_error(step: &'static str) -> impl Fn(kvm_ioctls::Error) -> MachineError {
    move |source| MachineError::Kvm { step, source }
}

fn device_error(device: &'static str) -> impl Fn(io::Error) -> MachineError {
    move |source| MachineError::Device { device, source }
}

/// Ties a device's interrupt and its queues' notifications to the machine.
fn wire(vm: &VmFd, slot: &Slot, address: u64, irq: u32) -> Result<(), MachineError> {
    let error = device_error(slot.name());
    let line = slot.interrupt().line().to_event_fd().map_err(&error)?;
    vm.register_irqfd(&line, irq).map_err(kvm_error("tie an interrupt line to a device"))?;
    let register = IoEventAddress::Mmio(address + QUEUE_NOTIFY);
    for (queue, wake) in (0u32..).zip(slot.notifications()) {
        let event = wake.to_event_fd().map_err(&error)?;
        vm.register_ioevent(&event, &register, queue).map_err(kvm_error("tie a queue to a device"))?;
    }
    Ok(())
}

fn make_console(vm: &VmFd, pipe: File) -> Result<Console, MachineError> {
    let error = device_error("console");
    let line = Wake::new().map_err(&error)?;
    let event = line.to_event_fd().map_err(&error)?;
    vm.register_irqfd(&event, SERIAL_IRQ).map_err(kvm_error("tie an interrupt line to the console"))?;
    Console::new(pipe, line).map_err(error)
}

/// Adds each device to its event loop and starts the loops that are not the owner's.
fn attach(slots: &[Arc<Slot>], loops: &[Loop], main: &Poller) -> Result<(), MachineError> {
    let all = [(Loop::Main, "vmm"), (Loop::Net, "net"), (Loop::Layers, "layers"), (Loop::Disks, "disks")];
    for (which, name) in all {
        let worker =
            if which == Loop::Main { None } else { Some(Poller::new().map_err(MachineError::Thread)?) };
        let poller = worker.as_ref().unwrap_or(main);
        for ((position, slot), _) in
            (0u32..).zip(slots).zip(loops).filter(|(_, assigned)| **assigned == which)
        {
            slot.attach(&poller.registrar(position)).map_err(device_error(slot.name()))?;
        }
        if let Some(poller) = worker {
            let slots = slots.to_vec();
            std::thread::Builder::new()
                .name(name.into())
                .spawn(move || serve(poller, &slots))
                .map_err(MachineError::Thread)?;
        }
    }
    Ok(())
}

/// An event loop that does nothing but serve devices.
fn serve(mut poller: Poller, slots: &[Arc<Slot>]) {
    while let Ok(events) = poller.wait(None) {
        for event in events {
            if let Some(slot) = slots.get(event.owner as usize) {
                slot.handle(event);
            }
        }
    }
}

#[cfg(test)]
mod tests;
