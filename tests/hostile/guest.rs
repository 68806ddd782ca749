//! The guest: an interpreter of a few dozen instructions, and the list of what it is to do, as an ELF file that is entered
//! by the PVH protocol (32 bits, no paging).

use std::arch::global_asm;
use std::slice;

/// Where the interpreter is loaded and entered.
const CODE: u32 = 0x10_0000;
/// Address and number of the operations, for the interpreter.
const PARAMETERS: u32 = 0x10_1000;
/// Where the operations are.
const OPS: u32 = 0x20_0000;
/// Memory for rings and buffers: from here to [`MEMORY_END`].
pub const FREE: u32 = 0x100_0000;
/// One past the guest's last byte of memory.
pub const MEMORY_END: u32 = 64 << 20;

/// What is done with an address and a value.
#[derive(Debug, Clone, Copy)]
#[repr(u32)]
pub enum Kind {
    Write32 = 0,
    Read32 = 1,
    Write16 = 2,
    Write8 = 3,
    Read8 = 4,
    /// To an I/O port.
    Out8 = 5,
    In8 = 6,
    Out32 = 7,
}

/// One operation. The bits of the masks are drawn anew each time: the address is `address ^ (random & address_mask)`, and
/// the value likewise.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Op {
    pub address: u32,
    pub address_mask: u32,
    pub value: u32,
    pub value_mask: u32,
    pub kind: Kind,
}

// Register use: esi the next operation, ecx how many are left, edi the state of an xorshift generator.
global_asm!(
    ".pushsection .rodata",
    ".code32",
    "hostile_guest_begin:",
    "mov edi, 0x2545f491",
    "2:",
    "mov esi, dword ptr [0x101000]",
    "mov ecx, dword ptr [0x101004]",
    "3:",
    "mov eax, edi",
    "shl eax, 13",
    "xor edi, eax",
    "mov eax, edi",
    "shr eax, 17",
    "xor edi, eax",
    "mov eax, edi",
    "shl eax, 5",
    "xor edi, eax",
    "mov edx, edi",
    "and edx, dword ptr [esi + 4]",
    "xor edx, dword ptr [esi]",
    "mov eax, edi",
    "shl eax, 13",
    "xor edi, eax",
    "mov eax, edi",
    "shr eax, 17",
    "xor edi, eax",
    "mov eax, edi",
    "shl eax, 5",
    "xor edi, eax",
    "mov eax, edi",
    "and eax, dword ptr [esi + 12]",
    "xor eax, dword ptr [esi + 8]",
    "mov ebx, dword ptr [esi + 16]",
    "add esi, 20",
    "cmp ebx, 0",
    "je 20f",
    "cmp ebx, 1",
    "je 21f",
    "cmp ebx, 2",
    "je 22f",
    "cmp ebx, 3",
    "je 23f",
    "cmp ebx, 4",
    "je 24f",
    "cmp ebx, 5",
    "je 25f",
    "cmp ebx, 6",
    "je 26f",
    "out dx, eax",
    "jmp 4f",
    "20:",
    "mov dword ptr [edx], eax",
    "jmp 4f",
    "21:",
    "mov eax, dword ptr [edx]",
    "jmp 4f",
    "22:",
    "mov word ptr [edx], ax",
    "jmp 4f",
    "23:",
    "mov byte ptr [edx], al",
    "jmp 4f",
    "24:",
    "mov al, byte ptr [edx]",
    "jmp 4f",
    "25:",
    "out dx, al",
    "jmp 4f",
    "26:",
    "in al, dx",
    "4:",
    "dec ecx",
    "jnz 3b",
    "jmp 2b",
    "hostile_guest_end:",
    ".code64",
    ".popsection",
);

unsafe extern "C" {
    static hostile_guest_begin: u8;
    static hostile_guest_end: u8;
}

fn interpreter() -> &'static [u8] {
    let (begin, end) = (&raw const hostile_guest_begin, &raw const hostile_guest_end);
    // SAFETY: both symbols are in the one read-only block above, in this order.
    unsafe { slice::from_raw_parts(begin, end.offset_from_unsigned(begin)) }
}

/// The guest as a file for the machine to boot.
pub fn elf(ops: &[Op]) -> Vec<u8> {
    // SAFETY: an Op is five 32-bit words without padding.
    let ops_bytes = unsafe { slice::from_raw_parts(ops.as_ptr().cast::<u8>(), size_of_val(ops)) };
    let parameters = [OPS, u32::try_from(ops.len()).unwrap()].map(u32::to_le_bytes).concat();
    // The note that names the entry point: owner "Xen", type XEN_ELFNOTE_PHYS32_ENTRY.
    let note =
        [&4u32.to_le_bytes()[..], &4u32.to_le_bytes(), &18u32.to_le_bytes(), b"Xen\0", &CODE.to_le_bytes()]
            .concat();
    let segments: [(u32, u32, &[u8]); 4] =
        [(1, CODE, interpreter()), (1, PARAMETERS, &parameters), (1, OPS, ops_bytes), (4, 0, &note)];

    let headers = 64 + 56 * segments.len();
    let mut file = Vec::new();
    file.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    file.extend([2u16, 62].map(u16::to_le_bytes).concat());
    file.extend(1u32.to_le_bytes());
    file.extend([u64::from(CODE), 64, 0].map(u64::to_le_bytes).concat());
    file.extend(0u32.to_le_bytes());
    file.extend([64u16, 56, u16::try_from(segments.len()).unwrap(), 64, 0, 0].map(u16::to_le_bytes).concat());
    let mut offset = headers;
    for (kind, address, bytes) in segments {
        let (place, size) = (offset as u64, bytes.len() as u64);
        file.extend([kind, 7].map(u32::to_le_bytes).concat());
        file.extend(
            [place, u64::from(address), u64::from(address), size, size, 4].map(u64::to_le_bytes).concat(),
        );
        offset += bytes.len().next_multiple_of(4);
    }
    for (_, _, bytes) in segments {
        file.extend(bytes);
        file.resize(file.len().next_multiple_of(4), 0);
    }
    file
}
