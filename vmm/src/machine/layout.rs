//! Where things lie in the guest's physical address space and on its I/O bus.

/// One mebibyte.
pub const MIB: u64 = 1 << 20;

/// First address of the hole that memory leaves below 4 GiB; devices live there.
pub const HOLE_START: u64 = 0xd000_0000;
/// Where memory goes on after the hole.
pub const HIGH_MEMORY_START: u64 = 1 << 32;

/// First virtio-mmio window.
pub const MMIO_START: u64 = HOLE_START;
/// Size of one virtio-mmio window.
pub const MMIO_WINDOW: u64 = 0x1000;

/// Interrupt lines of the virtio devices, in the devices' order. Left out: 0 (timer), 2 (cascade), 4 (serial), 8
/// (clock), 13 (coprocessor).
pub const DEVICE_IRQS: [u32; 8] = [5, 6, 7, 9, 10, 11, 12, 14];

/// I/O APIC and local APIC, as KVM places them.
pub const IO_APIC: u32 = 0xfec0_0000;
/// See [`IO_APIC`].
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// Three pages that KVM needs on Intel processors for real mode, inside the hole.
pub const KVM_TSS: usize = 0xfffb_d000;
/// One page that KVM needs on Intel processors for an identity map, inside the hole.
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;

/// The segment descriptor table that the kernel is entered with.
pub const GDT: u64 = 0x500;
/// The empty interrupt descriptor table that the kernel is entered with.
pub const IDT: u64 = 0x520;
/// PVH start information.
pub const PVH_START_INFO: u64 = 0x6000;
/// PVH module list (the initramfs).
pub const PVH_MODULES: u64 = 0x6040;
/// PVH memory map.
pub const PVH_MEMORY_MAP: u64 = 0x7000;
/// The kernel's command line.
pub const COMMAND_LINE: u64 = 0x2_0000;
/// Longest command line, with its terminating zero (Linux: `COMMAND_LINE_SIZE`).
pub const COMMAND_LINE_MAX: usize = 2048;
/// The MP table, in the last KiB of conventional memory, where kernels look for it.
pub const MP_TABLE: u64 = 0x9_fc00;
/// Room for the MP table.
pub const MP_TABLE_MAX: usize = 0x400;
/// Where the guest's kernel writes its last messages when it panics: memory of the legacy area, which it does not use otherwise.
pub const LAST_WORDS: u64 = 0xd_0000;
/// Room for them, a power of two.
pub const LAST_WORDS_MAX: usize = 0x8000;
/// First byte above the legacy area; memory is usable from here on.
pub const HIMEM: u64 = MIB;

/// Serial console's ports.
pub const SERIAL_PORT: u16 = 0x3f8;
/// Serial console's interrupt line.
pub const SERIAL_IRQ: u32 = 4;
/// Command port of the keyboard controller, through which kernels reset a PC.
pub const KEYBOARD_PORT: u16 = 0x64;
/// The keyboard controller's "reset the processor".
pub const KEYBOARD_RESET: u8 = 0xfe;
