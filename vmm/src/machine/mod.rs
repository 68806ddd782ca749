//! One machine: memory, processors, devices, put together by [`Built::build`] and set going by [`Built::start`].
//!
//! Its threads: one for each processor, those that own devices (`devices`), those that wait for a disk
//! ([`crate::virtio::block`]), and the owner's, which steers it and touches no data of the guest's.

pub mod bus;
pub mod cmdline;
pub mod console;
pub mod cpuid;
mod devices;
mod error;
pub mod exits;
pub mod image;
pub mod kernel;
mod kvm;
pub mod last_words;
pub mod layout;
pub mod memory;
pub mod mptable;
mod resources;
pub mod vcpu;

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use kvm_ioctls::{VcpuFd, VmFd};

use crate::control::{ExtentDisk, MachineConfig};
use crate::event::{EventFd, Mailbox};
use crate::virtio::balloon;
use crate::virtio::block::extents::{ExtentError, Extents};
use crate::virtio::fs;
use crate::virtio::mmio::MmioDevice;
use crate::virtio::thread::Handle;
use crate::virtio::vsock::{self, Connected};
use bus::Bus;
use console::Console;
use devices::Devices;
pub use error::MachineError;
use error::{device_error, kvm_error};
use exits::ExitCounters;
use layout::SERIAL_IRQ;
use memory::GuestMemory;
use resources::Resources;
use vcpu::gate::Gate;
use vcpu::{Shared, VcpuEvent, Vcpus};

/// What the machine's parts tell its owner.
#[derive(Debug)]
pub enum Notice {
    /// From a processor.
    Vcpu(VcpuEvent),
    /// From the socket device.
    Connected(Connected),
    /// The host holds back nothing that the guest sent through sockets.
    Drained,
    /// The file of an extent that request `id` removed is closed.
    ExtentClosed {
        /// The request.
        id: u64,
    },
    /// The file device has taken the server of request `id`, or not; the error is a sentence.
    FileServer {
        /// The request.
        id: u64,
        /// Whether it has.
        result: Result<(), String>,
    },
    /// One of the devices' threads stands still, in this pause.
    DevicesPaused {
        /// Which pause.
        pause: u64,
    },
    /// One of the devices' threads cannot go on.
    ThreadFailed(io::Error),
}

/// A machine that does not run yet.
#[derive(Debug)]
pub struct Built {
    vcpus: Vec<VcpuFd>,
    shared: Arc<Shared>,
    // Dropping it would close the virtual machine under its processors.
    _vm: VmFd,
    memory: GuestMemory,
    console: Option<Arc<Console>>,
    threads: Vec<Handle>,
    layers: Extents,
    volumes: Extents,
    vsock: Arc<Mailbox<vsock::Command>>,
    balloon: Arc<MmioDevice>,
    fs: Arc<Mailbox<fs::Attach>>,
    memory_mib: u32,
    notices: Arc<Mailbox<Notice>>,
}

/// A running machine. It may only be dropped once [`Machine::end`] has said that its processors have ended.
#[derive(Debug)]
pub struct Machine {
    vcpus: Vcpus,
    built: Built,
}

impl Built {
    /// Builds the machine of [`crate::control::Command::Boot`].
    ///
    /// # Errors
    /// When the configuration, a descriptor or the host is not what it has to be.
    pub fn build(
        config: &MachineConfig,
        fds: Vec<OwnedFd>,
        notices: &Arc<Mailbox<Notice>>,
    ) -> Result<Self, MachineError> {
        resources::check(config)?;
        let mut resources = Resources::take(config, fds)?;
        let host = kvm::open_kvm(resources.kvm)?;
        let memory = memory::allocate(config.memory_mib).map_err(MachineError::Memory)?;
        let vm = kvm::create_vm(&host)?;
        // Before the interrupt controllers: once anything sits on KVM's I/O bus, the next memory slot waits for a grace
        // period of several milliseconds on recent hosts.
        kvm::add_memory(&vm, &memory)?;
        vm.create_irq_chip().map_err(kvm_error("make the interrupt controllers"))?;
        let vcpus = kvm::create_vcpus(&host, &vm, config.vcpus)?;

        let gate = Arc::new(Gate::default());
        let files = (resources.scratch, resources.taps);
        let Devices { windows, threads, layers, volumes, vsock, balloon, fs } =
            devices::make(&vm, &memory, config, files, &gate, notices)?;
        let console = match resources.console.take() {
            Some(pipe) => Some(Arc::new(make_console(&vm, pipe)?)),
            None => None,
        };

        let places: Vec<_> = (0..windows.len()).filter_map(devices::place).collect();
        let command_line = cmdline::build(&places, console.is_some(), &config.extra_cmdline);
        let entry = kernel::load(&memory, &mut resources.kernel, &resources.initramfs, &command_line)
            .map_err(MachineError::Kernel)?;
        mptable::write(&memory, config.vcpus).map_err(MachineError::MpTable)?;
        if let Some(first) = vcpus.first() {
            vcpu::setup::enter_kernel(first, &memory, entry).map_err(MachineError::Vcpu)?;
        }

        let reports = Arc::clone(notices);
        let report = Box::new(move |event| reports.send(Notice::Vcpu(event)));
        let shared = Arc::new(Shared::new(Bus::new(windows, console.clone()), gate, report));
        let notices = Arc::clone(notices);
        Ok(Self {
            vcpus,
            shared,
            _vm: vm,
            memory,
            console,
            threads,
            layers,
            volumes,
            vsock,
            balloon,
            fs,
            memory_mib: config.memory_mib,
            notices,
        })
    }

    /// Lets the processors run, the first from the kernel's entry point on.
    ///
    /// # Errors
    /// When the host has no more threads.
    pub fn start(mut self) -> Result<Machine, MachineError> {
        let vcpus = std::mem::take(&mut self.vcpus);
        let vcpus = Vcpus::start(vcpus, &self.shared).map_err(MachineError::Thread)?;
        Ok(Machine { vcpus, built: self })
    }
}

impl Machine {
    /// Asks all processors to stand still; [`VcpuEvent::AtRest`] says that they do.
    pub fn pause_vcpus(&self) {
        self.vcpus.pause();
    }

    /// Whether all processors stand still.
    #[must_use]
    pub fn vcpus_are_at_rest(&self) -> bool {
        self.vcpus.are_at_rest()
    }

    /// Asks the devices' threads to stand still; each says that it does by [`Notice::DevicesPaused`].
    pub fn pause_devices(&self, pause: u64) {
        for thread in &self.built.threads {
            let notices = Arc::clone(&self.built.notices);
            thread.pause(move || notices.send(Notice::DevicesPaused { pause }));
        }
    }

    /// How many threads own devices.
    #[must_use]
    pub fn device_threads(&self) -> usize {
        self.built.threads.len()
    }

    /// Lets devices and processors go on.
    pub fn resume(&self) {
        self.built.threads.iter().for_each(Handle::resume);
        self.vcpus.resume();
    }

    /// Ends the processors; whether they have ended, which may fail when the host hangs.
    pub fn end(&mut self) -> bool {
        self.vcpus.end()
    }

    /// Leaves a message for the socket device.
    pub fn vsock(&self, command: vsock::Command) {
        self.built.vsock.send(command);
    }

    /// Gives the file device a server. [`Notice::FileServer`] with `id` follows.
    pub fn attach_file_server(&self, server: OwnedFd, id: u64) {
        let notices = Arc::clone(&self.built.notices);
        let answer = Box::new(move |result| notices.send(Notice::FileServer { id, result }));
        self.built.fs.send(fs::Attach { server, answer });
    }

    /// Asks the guest to give up so much of its memory in all.
    ///
    /// # Errors
    /// When that would leave it too little.
    pub fn set_balloon(&self, mib: u32) -> Result<(), MachineError> {
        if !resources::leaves_enough(self.built.memory_mib, mib) {
            return Err(MachineError::Config("the balloon must leave the guest 64 MiB"));
        }
        balloon::ask(&self.built.balloon, mib);
        Ok(())
    }

    /// What the guest says it has given up.
    #[must_use]
    pub fn balloon_mib(&self) -> u32 {
        balloon::given(&self.built.balloon)
    }

    /// Asks for [`Notice::Drained`].
    pub fn drain(&self) {
        let notices = Arc::clone(&self.built.notices);
        self.vsock(vsock::Command::WhenDrained(Box::new(move || notices.send(Notice::Drained))));
    }

    /// All devices.
    #[must_use]
    pub fn devices(&self) -> &[Arc<MmioDevice>] {
        self.built.shared.bus.devices()
    }

    /// What the processors came out of the guest for.
    #[must_use]
    pub fn exits(&self) -> &ExitCounters {
        &self.built.shared.exits
    }

    /// The debug console, if there is one.
    #[must_use]
    pub fn console(&self) -> Option<&Console> {
        self.built.console.as_deref()
    }

    /// What the guest's kernel said last, if it panicked.
    #[must_use]
    pub fn last_words(&self) -> Vec<String> {
        last_words::read(&self.built.memory)
    }

    /// The extents of a disk.
    #[must_use]
    pub fn extents(&self, disk: ExtentDisk) -> &Extents {
        match disk {
            ExtentDisk::Layers => &self.built.layers,
            ExtentDisk::Volumes => &self.built.volumes,
        }
    }

    /// Takes the extent at `offset` off a disk. [`Notice::ExtentClosed`] with `id` follows.
    ///
    /// # Errors
    /// When there is none.
    pub fn remove_extent(&self, disk: ExtentDisk, offset: u64, id: u64) -> Result<(), ExtentError> {
        let notices = Arc::clone(&self.built.notices);
        self.extents(disk).remove(offset, move || notices.send(Notice::ExtentClosed { id }))
    }
}

fn make_console(vm: &VmFd, pipe: File) -> Result<Console, MachineError> {
    let error = device_error("console");
    let line = EventFd::new().map_err(&error)?;
    let event = line.for_kvm().map_err(&error)?;
    vm.register_irqfd(&event, SERIAL_IRQ).map_err(kvm_error("tie an interrupt line to the console"))?;
    Console::new(pipe, line).map_err(error)
}

#[cfg(test)]
mod tests;
