//! What a seccomp filter answers to system calls that are newer than its profile.
//!
//! Programs try a new call and fall back to an old one when the kernel says that it does not know it (ENOSYS). A profile that
//! refuses with EPERM what it does not list says something else to a call its author could not have listed. As runc does,
//! a few instructions before the filter answer ENOSYS to every number above the highest that the profile names.

use libseccomp::{ScmpArch, ScmpSyscall};
use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompAction};

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
/// Set in the numbers of x32's calls, which share x86-64's audit architecture.
const X32: u32 = 0x4000_0000;
/// Audit architectures (`AUDIT_ARCH_*`).
const I386: u32 = 0x4000_0003;
const X86_64: u32 = 0xc000_003e;
const AARCH64: u32 = 0xc000_00b7;
const ARM: u32 = 0x4000_0028;

/// Classic BPF, as far as it is used here.
const LOAD: u16 = 0x20;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER: u16 = 0x25;
const JUMP_GREATER_OR_EQUAL: u16 = 0x35;
const RETURN: u16 = 0x06;
const RETURN_ERRNO: u32 = 0x0005_0000;

/// One instruction (`struct sock_filter`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Instruction {
    code: u16,
    if_true: u8,
    if_false: u8,
    k: u32,
}

const fn plain(code: u16, k: u32) -> Instruction {
    Instruction { code, if_true: 0, if_false: 0, k }
}

const fn jump(code: u16, k: u32, if_true: u8, if_false: u8) -> Instruction {
    Instruction { code, if_true, if_false, k }
}

/// The instructions to put before a profile's filter, for the architectures that it lists; none if the profile lets unknown
/// calls pass, or says ENOSYS itself.
pub(super) fn stub(profile: &LinuxSeccomp, architectures: &[ScmpArch]) -> Vec<u8> {
    let passes = matches!(
        profile.default_action(),
        LinuxSeccompAction::ScmpActAllow | LinuxSeccompAction::ScmpActLog | LinuxSeccompAction::ScmpActTrace
    );
    if passes || profile.default_errno_ret() == Some(libc::ENOSYS.cast_unsigned()) {
        return Vec::new();
    }
    let instructions = assemble(&highest(profile, architectures));
    let bytes = |step: &Instruction| {
        let [c0, c1] = step.code.to_ne_bytes();
        let [k0, k1, k2, k3] = step.k.to_ne_bytes();
        [c0, c1, step.if_true, step.if_false, k0, k1, k2, k3]
    };
    instructions.iter().flat_map(bytes).collect()
}

/// The highest call that the profile names, by architecture; x32's is kept apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Highest {
    architecture: u32,
    number: u32,
    x32: Option<u32>,
}

fn highest(profile: &LinuxSeccomp, listed: &[ScmpArch]) -> Vec<Highest> {
    let mut found: Vec<Highest> = Vec::new();
    // A filter has the native architecture whether or not it is listed.
    for arch in [ScmpArch::Native].iter().chain(listed) {
        let arch = if *arch == ScmpArch::Native { ScmpArch::native() } else { *arch };
        let audit = match arch {
            ScmpArch::X8664 | ScmpArch::X32 => X86_64,
            ScmpArch::X86 => I386,
            ScmpArch::Aarch64 => AARCH64,
            ScmpArch::Arm => ARM,
            // This guest's processor never runs them.
            _ => continue,
        };
        let names = profile.syscalls().iter().flatten().flat_map(|rule| rule.names());
        // Calls that an architecture does not have are negative.
        let numbers = names
            .filter_map(|name| ScmpSyscall::from_name_by_arch(name, arch).ok())
            .filter_map(|call| u32::try_from(i32::from(call)).ok());
        let Some(number) = numbers.max() else { continue };
        let entry = match found.iter_mut().find(|entry| entry.architecture == audit) {
            Some(entry) => entry,
            None => {
                found.push(Highest { architecture: audit, number: 0, x32: None });
                let Some(entry) = found.last_mut() else { continue };
                entry
            }
        };
        if arch == ScmpArch::X32 { entry.x32 = Some(number) } else { entry.number = number }
    }
    found
}

fn assemble(highest: &[Highest]) -> Vec<Instruction> {
    let unknown = plain(RETURN, RETURN_ERRNO | libc::ENOSYS.cast_unsigned());
    let mut blocks: Vec<Vec<Instruction>> = Vec::new();
    for entry in highest {
        let mut block = vec![plain(LOAD, NUMBER)];
        match entry.x32 {
            None => block.push(jump(JUMP_GREATER, entry.number, 0, 1)),
            Some(x32) => block.extend([
                jump(JUMP_GREATER_OR_EQUAL, X32, 1, 0),
                jump(JUMP_GREATER, entry.number, 1, 2),
                jump(JUMP_GREATER, x32, 0, 1),
            ]),
        }
        block.push(unknown);
        blocks.push(block);
    }
    // Each block: is it this architecture? If not, over it to the next. At its end, to the filter behind all blocks.
    let mut left: usize = blocks.iter().map(|block| block.len() + 2).sum();
    let mut program = Vec::new();
    if !blocks.is_empty() {
        program.push(plain(LOAD, ARCHITECTURE));
    }
    for (entry, block) in highest.iter().zip(blocks) {
        left -= block.len() + 2;
        let over = u8::try_from(block.len() + 1).unwrap_or(u8::MAX);
        program.push(jump(JUMP_EQUAL, entry.architecture, 0, over));
        program.extend(block);
        program.push(plain(JUMP, u32::try_from(left).unwrap_or(0)));
    }
    program
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a stub answers to a call: an errno, or `None` where the filter behind it decides.
    fn run(program: &[Instruction], architecture: u32, number: u32) -> Option<u32> {
        let (mut at, mut value) = (0, 0);
        while let Some(step) = program.get(at) {
            at += 1;
            let go = |taken: bool| usize::from(if taken { step.if_true } else { step.if_false });
            match step.code {
                LOAD => value = if step.k == NUMBER { number } else { architecture },
                JUMP => at += step.k as usize,
                JUMP_EQUAL => at += go(value == step.k),
                JUMP_GREATER => at += go(value > step.k),
                JUMP_GREATER_OR_EQUAL => at += go(value >= step.k),
                RETURN => return Some(step.k & 0xffff),
                other => panic!("{other:#x} is no instruction of a stub"),
            }
        }
        assert_eq!(at, program.len(), "a jump goes past the stub");
        None
    }

    fn profile(json: &str) -> LinuxSeccomp {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn numbers_above_the_highest_named_one_are_not_known() {
        let profile = profile(
            r#"{"defaultAction":"SCMP_ACT_ERRNO",
                "syscalls":[{"names":["read","clone3","no_such_call"],"action":"SCMP_ACT_ALLOW"},
                            {"names":["openat2"],"action":"SCMP_ACT_ERRNO"}]}"#,
        );
        let listed = [ScmpArch::X8664, ScmpArch::X86, ScmpArch::X32];
        let program = assemble(&highest(&profile, &listed));
        let enosys = Some(libc::ENOSYS.cast_unsigned());
        // openat2 is 437 everywhere.
        for (architecture, number, expected) in [
            (X86_64, 0, None),
            (X86_64, 437, None),
            (X86_64, 438, enosys),
            (X86_64, 9999, enosys),
            (X86_64, X32 | 437, None),
            (X86_64, X32 | 438, enosys),
            (X86_64, u32::MAX, enosys),
            (I386, 437, None),
            (I386, 438, enosys),
            (AARCH64, 9999, None),
        ] {
            assert_eq!(run(&program, architecture, number), expected, "{architecture:#x} {number:#x}");
        }
        assert_eq!(stub(&profile, &listed).len(), program.len() * 8);
    }

    #[test]
    fn a_profile_that_is_clear_about_unknown_calls_is_left_alone() {
        for json in [
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_ERRNO"}]}"#,
            r#"{"defaultAction":"SCMP_ACT_LOG","syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW"}]}"#,
            r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":38,"syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW"}]}"#,
            r#"{"defaultAction":"SCMP_ACT_ERRNO"}"#,
        ] {
            assert!(stub(&profile(json), &[]).is_empty(), "{json}");
        }
    }
}
