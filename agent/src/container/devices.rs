//! The device rules of a container, enforced by a BPF program on its cgroup.
//!
//! libcontainer leaves this to a C library; the few instructions needed are assembled here. The program looks at
//! one access (a kind of device, its numbers, and any of read, write, mknod) and allows or refuses it.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

use crate::error::{AgentError, Attempt, Result};

/// Access bits as the kernel passes them (`BPF_DEVCG_ACC_*`).
const MKNOD: u32 = 1;
const READ: u32 = 2;
const WRITE: u32 = 4;
const ALL: u32 = MKNOD | READ | WRITE;
/// Device kinds as the kernel passes them (`BPF_DEVCG_DEV_*`).
const BLOCK: u32 = 1;
const CHAR: u32 = 2;

/// One rule. Of several that match, the last counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rule {
    allow: bool,
    /// `None`: any.
    kind: Option<u32>,
    major: Option<i32>,
    minor: Option<i32>,
    access: u32,
}

/// The devices every container may use, as runc adds them to any spec.
const DEFAULTS: [(u32, Option<i32>, Option<i32>, u32); 10] = [
    // Making any node; using it is another matter.
    (CHAR, None, None, MKNOD),
    (BLOCK, None, None, MKNOD),
    // null, zero, full, random, urandom
    (CHAR, Some(1), Some(3), ALL),
    (CHAR, Some(1), Some(5), ALL),
    (CHAR, Some(1), Some(7), ALL),
    (CHAR, Some(1), Some(8), ALL),
    (CHAR, Some(1), Some(9), ALL),
    // tty, ptmx, pts
    (CHAR, Some(5), Some(0), ALL),
    (CHAR, Some(5), Some(2), ALL),
    (CHAR, Some(136), None, ALL),
];

/// Puts the spec's rules in force on a cgroup, with the defaults after them and the guest's own disks out of reach
/// whatever the rules say.
///
/// # Errors
///
/// When a rule is malformed or the kernel refuses the program.
pub fn enforce(cgroup: &Path, rules: &[LinuxDeviceCgroup]) -> Result<()> {
    put_in_force(cgroup, &assemble(&complete(rules, &disk_majors())?))
}

fn put_in_force(cgroup: &Path, program: &[Instruction]) -> Result<()> {
    let directory = fs::File::open(cgroup).attempt(|| format!("open cgroup {}", cgroup.display()))?;
    let loaded = load(program).attempt(|| format!("load the device rules of {}", cgroup.display()))?;
    attach(&directory, &loaded).attempt(|| format!("attach the device rules of {}", cgroup.display()))
}

/// Keeps all cgroups below one from the guest's own disks, whatever rules they have themselves: the kernel asks the programs
/// of the cgroups above as well, and no container reaches one above its own, to take a program away, whatever its capabilities.
///
/// # Errors
///
/// When the kernel refuses the program.
pub fn keep_from_disks(cgroup: &Path) -> Result<()> {
    let everything = Rule { allow: true, kind: None, major: None, minor: None, access: ALL };
    let rules: Vec<Rule> = std::iter::once(everything).chain(disks(&disk_majors())).collect();
    put_in_force(cgroup, &assemble(&rules))
}

/// Rules that refuse to read and write disks.
fn disks(majors: &[i32]) -> impl Iterator<Item = Rule> {
    majors.iter().map(|&major| Rule {
        allow: false,
        kind: Some(BLOCK),
        major: Some(major),
        minor: None,
        access: READ | WRITE,
    })
}

/// Major numbers of the disks the machine gives the guest: virtio disks and their higher partitions.
pub(super) fn disk_majors() -> Vec<i32> {
    // The kernel hands out virtio's number when the driver starts; these are what it gives on every boot.
    const USUAL: [i32; 2] = [254, 259];
    let text = fs::read_to_string("/proc/devices").unwrap_or_default();
    let mut majors: Vec<i32> = text
        .lines()
        .skip_while(|line| *line != "Block devices:")
        .filter_map(|line| line.trim().split_once(' '))
        .filter(|(_, name)| matches!(*name, "virtblk" | "blkext"))
        .filter_map(|(major, _)| major.parse().ok())
        .collect();
    if majors.is_empty() {
        majors.extend(USUAL);
    }
    majors
}

fn complete(spec: &[LinuxDeviceCgroup], disks: &[i32]) -> Result<Vec<Rule>> {
    let mut rules = Vec::new();
    for rule in spec {
        rules.push(parse(rule)?);
    }
    rules.extend(DEFAULTS.iter().map(|&(kind, major, minor, access)| Rule {
        allow: true,
        kind: Some(kind),
        major,
        minor,
        access,
    }));
    rules.extend(self::disks(disks));
    Ok(rules)
}

fn parse(rule: &LinuxDeviceCgroup) -> Result<Rule> {
    let kind = match rule.typ().unwrap_or(LinuxDeviceType::A) {
        LinuxDeviceType::A => None,
        LinuxDeviceType::B => Some(BLOCK),
        LinuxDeviceType::C | LinuxDeviceType::U => Some(CHAR),
        LinuxDeviceType::P => return Err(AgentError::Invalid("a device rule names a FIFO".to_owned())),
    };
    let number = |number: Option<i64>| match number {
        None | Some(..0) => Ok(None),
        Some(number) => i32::try_from(number)
            .map(Some)
            .map_err(|_| AgentError::Invalid(format!("a device rule has the impossible number {number}"))),
    };
    let access = rule.access().as_deref().unwrap_or("rwm").chars().try_fold(0, |access, letter| {
        Ok(access
            | match letter {
                'r' => READ,
                'w' => WRITE,
                'm' => MKNOD,
                _ => return Err(AgentError::Invalid(format!("a device rule asks for access {letter:?}"))),
            })
    })?;
    Ok(Rule { allow: rule.allow(), kind, major: number(rule.major())?, minor: number(rule.minor())?, access })
}

/// One eBPF instruction (`struct bpf_insn`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
struct Instruction {
    code: u8,
    /// Destination in the low half, source in the high half.
    registers: u8,
    offset: i16,
    immediate: i32,
}

const LOAD_WORD: u8 = 0x61;
const MOVE_IMMEDIATE: u8 = 0xb7;
const MOVE_REGISTER: u8 = 0xbf;
const AND: u8 = 0x57;
const SHIFT_RIGHT: u8 = 0x77;
const JUMP_EQUAL: u8 = 0x15;
const JUMP_NOT_EQUAL: u8 = 0x55;
const EXIT: u8 = 0x95;

const fn instruction(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers: from << 4 | to, offset, immediate }
}

/// Assembles the program: the last rule is looked at first, and the first match decides; none refuses.
fn assemble(rules: &[Rule]) -> Vec<Instruction> {
    // r1: the context; r2: kind; r3: access; r4: major; r5: minor; r0: the verdict; r6: spare.
    let mut program = vec![
        instruction(LOAD_WORD, 2, 1, 0, 0),
        instruction(MOVE_REGISTER, 3, 2, 0, 0),
        instruction(AND, 2, 0, 0, 0xffff),
        instruction(SHIFT_RIGHT, 3, 0, 0, 16),
        instruction(LOAD_WORD, 4, 1, 4, 0),
        instruction(LOAD_WORD, 5, 1, 8, 0),
    ];
    for rule in rules.iter().rev() {
        // Each test jumps to the next rule when it fails; the distances are filled in below.
        let mut block = Vec::new();
        if let Some(kind) = rule.kind {
            block.push(instruction(JUMP_NOT_EQUAL, 2, 0, 0, kind.cast_signed()));
        }
        if rule.access != ALL {
            block.push(instruction(MOVE_REGISTER, 6, 3, 0, 0));
            if rule.allow {
                // Allows only what it names entirely.
                block.push(instruction(AND, 6, 0, 0, (ALL & !rule.access).cast_signed()));
                block.push(instruction(JUMP_NOT_EQUAL, 6, 0, 0, 0));
            } else {
                // Refuses what has any part of what it names.
                block.push(instruction(AND, 6, 0, 0, rule.access.cast_signed()));
                block.push(instruction(JUMP_EQUAL, 6, 0, 0, 0));
            }
        }
        if let Some(major) = rule.major {
            block.push(instruction(JUMP_NOT_EQUAL, 4, 0, 0, major));
        }
        if let Some(minor) = rule.minor {
            block.push(instruction(JUMP_NOT_EQUAL, 5, 0, 0, minor));
        }
        block.push(instruction(MOVE_IMMEDIATE, 0, 0, 0, i32::from(rule.allow)));
        block.push(instruction(EXIT, 0, 0, 0, 0));
        let length = block.len();
        for (at, step) in block.iter_mut().enumerate() {
            if matches!(step.code, JUMP_EQUAL | JUMP_NOT_EQUAL) {
                // A block has at most nine instructions.
                step.offset = i16::try_from(length - at - 1).unwrap_or_default();
            }
        }
        program.append(&mut block);
        if rule.kind.is_none() && rule.access == ALL && rule.major.is_none() && rule.minor.is_none() {
            // Decides everything: the kernel refuses programs with code that is never reached.
            return program;
        }
    }
    program.push(instruction(MOVE_IMMEDIATE, 0, 0, 0, 0));
    program.push(instruction(EXIT, 0, 0, 0, 0));
    program
}

/// What only fuzz targets reach.
#[cfg(fuzzing)]
pub mod fuzzing {
    use super::{LinuxDeviceCgroup, Result, assemble, complete};

    /// The program for a spec's rules and disks of these major numbers: code, registers, offset and immediate of each
    /// instruction.
    ///
    /// # Errors
    ///
    /// When a rule is malformed.
    pub fn program(rules: &[LinuxDeviceCgroup], disks: &[i32]) -> Result<Vec<(u8, u8, i16, i32)>> {
        let steps = assemble(&complete(rules, disks)?);
        Ok(steps.iter().map(|step| (step.code, step.registers, step.offset, step.immediate)).collect())
    }
}

/// `bpf(2)`'s argument for loading a program, as far as it is used here.
#[repr(C)]
struct LoadArgument {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
}

/// `bpf(2)`'s argument for attaching one.
#[repr(C)]
struct AttachArgument {
    target: u32,
    program: u32,
    attach_type: u32,
    flags: u32,
}

fn load(program: &[Instruction]) -> io::Result<OwnedFd> {
    const BPF_PROG_LOAD: i32 = 5;
    const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
    let argument = LoadArgument {
        program_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        instruction_count: u32::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        instructions: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
    };
    let fd = bpf(BPF_PROG_LOAD, &argument)?;
    // SAFETY: a successful load returns a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn attach(cgroup: &fs::File, program: &OwnedFd) -> io::Result<()> {
    const BPF_PROG_ATTACH: i32 = 8;
    const BPF_CGROUP_DEVICE: u32 = 6;
    const BPF_F_ALLOW_MULTI: u32 = 2;
    let argument = AttachArgument {
        target: cgroup.as_raw_fd().cast_unsigned(),
        program: program.as_raw_fd().cast_unsigned(),
        attach_type: BPF_CGROUP_DEVICE,
        flags: BPF_F_ALLOW_MULTI,
    };
    bpf(BPF_PROG_ATTACH, &argument).map(drop)
}

fn bpf<T>(command: i32, argument: &T) -> io::Result<i32> {
    // SAFETY: `argument` is the structure the command takes, with its true size; the addresses inside it name
    // memory of the callers that lives through the call.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(argument), size_of::<T>()) };
    i32::try_from(result).ok().filter(|result| *result >= 0).ok_or_else(io::Error::last_os_error)
}

#[cfg(test)]
#[path = "devices_tests.rs"]
mod tests;
