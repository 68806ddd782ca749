//! Seccomp profiles of the OCI spec, compiled to the kernel's BPF.

use std::collections::HashSet;
use std::io::{Read, Seek};

use libseccomp::error::SeccompError;
use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag, LinuxSeccompOperator,
};
use rustix::fs::MemfdFlags;

use super::unknown_calls;
use crate::error::{AgentError, Attempt, Result};

/// Compiles a profile: four bytes of flags for `seccomp(2)`, little-endian, then the BPF instructions.
///
/// # Errors
///
/// [`AgentError::Invalid`] for what the kernel or libseccomp cannot express, and for `SCMP_ACT_NOTIFY`, whose
/// listener would be a socket of the host.
pub fn compile(profile: &LinuxSeccomp) -> Result<Vec<u8>> {
    let default = action(profile.default_action(), profile.default_errno_ret())?;
    let mut filter = ScmpFilterContext::new(default).map_err(|error| refused("default action", &error))?;
    // Whether the process may gain privileges is the spec's business, not the filter's.
    filter.set_ctl_nnp(false).map_err(|error| refused("no_new_privs", &error))?;
    let listed = profile.architectures().iter().flatten().copied();
    let architectures: Vec<ScmpArch> = listed.map(architecture).collect();
    for arch in &architectures {
        filter.add_arch(*arch).map_err(|error| refused("architecture", &error))?;
    }
    for rule in profile.syscalls().iter().flatten() {
        let action = action(rule.action(), rule.errno_ret())?;
        if action == default {
            continue;
        }
        for name in rule.names() {
            // A name this kernel or library does not know cannot be called either.
            let Ok(syscall) = ScmpSyscall::from_name(name) else { continue };
            add_rule(&mut filter, action, syscall, rule.args().as_deref().unwrap_or_default())
                .map_err(|error| refused(name, &error))?;
        }
    }
    let mut compiled = flags(profile).to_le_bytes().to_vec();
    compiled.append(&mut unknown_calls::stub(profile, &architectures));
    compiled.append(&mut export(&filter)?);
    Ok(compiled)
}

fn add_rule(
    filter: &mut ScmpFilterContext,
    action: ScmpAction,
    syscall: ScmpSyscall,
    args: &[LinuxSeccompArg],
) -> std::result::Result<(), SeccompError> {
    if args.is_empty() {
        filter.add_rule(action, syscall)?;
        return Ok(());
    }
    let mut comparisons = Vec::with_capacity(args.len());
    let mut indexes = HashSet::new();
    for arg in args {
        let index = u32::try_from(arg.index()).unwrap_or(u32::MAX);
        indexes.insert(index);
        let operator = operator(arg);
        let datum = match operator {
            ScmpCompareOp::MaskedEqual(_) => arg.value_two().unwrap_or_default(),
            _ => arg.value(),
        };
        comparisons.push(ScmpArgCompare::new(index, operator, datum));
    }
    if indexes.len() == comparisons.len() {
        filter.add_rule_conditional(action, syscall, &comparisons)?;
    } else {
        // libseccomp compares an argument once per rule; like runc, make several comparisons alternatives.
        for comparison in &comparisons {
            filter.add_rule_conditional(action, syscall, std::slice::from_ref(comparison))?;
        }
    }
    Ok(())
}

fn export(filter: &ScmpFilterContext) -> Result<Vec<u8>> {
    let memory = rustix::fs::memfd_create(c"seccomp", MemfdFlags::CLOEXEC)
        .attempt(|| "make room for a seccomp filter".to_owned())?;
    filter.export_bpf(&memory).map_err(|error| refused("the whole profile", &error))?;
    let mut file = std::fs::File::from(memory);
    let mut compiled = Vec::new();
    file.rewind()
        .and_then(|()| file.read_to_end(&mut compiled))
        .attempt(|| "read a compiled seccomp filter".to_owned())?;
    Ok(compiled)
}

fn refused(what: &str, error: &SeccompError) -> AgentError {
    AgentError::Invalid(format!("compile the seccomp profile ({what}): {error}"))
}

/// The flags `seccomp(2)` takes beside the program.
fn flags(profile: &LinuxSeccomp) -> u32 {
    const TSYNC: u32 = 1;
    const LOG: u32 = 2;
    const SPEC_ALLOW: u32 = 4;
    profile.flags().iter().flatten().fold(0, |flags, flag| {
        flags
            | match flag {
                LinuxSeccompFilterFlag::SeccompFilterFlagTsync => TSYNC,
                LinuxSeccompFilterFlag::SeccompFilterFlagLog => LOG,
                LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => SPEC_ALLOW,
                // Only means something together with a listener.
                LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => 0,
            }
    })
}

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<ScmpAction> {
    let errno = errno.map_or(libc::EPERM, |errno| i32::try_from(errno).unwrap_or(libc::EPERM));
    Ok(match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => ScmpAction::KillThread,
        LinuxSeccompAction::ScmpActKillProcess => ScmpAction::KillProcess,
        LinuxSeccompAction::ScmpActTrap => ScmpAction::Trap,
        LinuxSeccompAction::ScmpActErrno => ScmpAction::Errno(errno),
        LinuxSeccompAction::ScmpActTrace => ScmpAction::Trace(u16::try_from(errno).unwrap_or_default()),
        LinuxSeccompAction::ScmpActAllow => ScmpAction::Allow,
        LinuxSeccompAction::ScmpActLog => ScmpAction::Log,
        LinuxSeccompAction::ScmpActNotify => {
            return Err(AgentError::Invalid(
                "seccomp profiles with SCMP_ACT_NOTIFY are not supported in a microVM".to_owned(),
            ));
        }
    })
}

fn operator(arg: &LinuxSeccompArg) -> ScmpCompareOp {
    match arg.op() {
        LinuxSeccompOperator::ScmpCmpNe => ScmpCompareOp::NotEqual,
        LinuxSeccompOperator::ScmpCmpLt => ScmpCompareOp::Less,
        LinuxSeccompOperator::ScmpCmpLe => ScmpCompareOp::LessOrEqual,
        LinuxSeccompOperator::ScmpCmpEq => ScmpCompareOp::Equal,
        LinuxSeccompOperator::ScmpCmpGe => ScmpCompareOp::GreaterEqual,
        LinuxSeccompOperator::ScmpCmpGt => ScmpCompareOp::Greater,
        // The spec's `value` is the mask here, `valueTwo` the datum.
        LinuxSeccompOperator::ScmpCmpMaskedEq => ScmpCompareOp::MaskedEqual(arg.value()),
    }
}

const fn architecture(arch: Arch) -> ScmpArch {
    match arch {
        Arch::ScmpArchNative => ScmpArch::Native,
        Arch::ScmpArchX86 => ScmpArch::X86,
        Arch::ScmpArchX86_64 => ScmpArch::X8664,
        Arch::ScmpArchX32 => ScmpArch::X32,
        Arch::ScmpArchArm => ScmpArch::Arm,
        Arch::ScmpArchAarch64 => ScmpArch::Aarch64,
        Arch::ScmpArchMips => ScmpArch::Mips,
        Arch::ScmpArchMips64 => ScmpArch::Mips64,
        Arch::ScmpArchMips64n32 => ScmpArch::Mips64N32,
        Arch::ScmpArchMipsel => ScmpArch::Mipsel,
        Arch::ScmpArchMipsel64 => ScmpArch::Mipsel64,
        Arch::ScmpArchMipsel64n32 => ScmpArch::Mipsel64N32,
        Arch::ScmpArchPpc => ScmpArch::Ppc,
        Arch::ScmpArchPpc64 => ScmpArch::Ppc64,
        Arch::ScmpArchPpc64le => ScmpArch::Ppc64Le,
        Arch::ScmpArchS390 => ScmpArch::S390,
        Arch::ScmpArchS390x => ScmpArch::S390X,
        Arch::ScmpArchRiscv64 => ScmpArch::Riscv64,
        Arch::ScmpArchParisc => ScmpArch::Parisc,
        Arch::ScmpArchParisc64 => ScmpArch::Parisc64,
        Arch::ScmpArchLoongarch64 => ScmpArch::Loongarch64,
        Arch::ScmpArchM68k => ScmpArch::M68k,
        Arch::ScmpArchSh => ScmpArch::Sh,
        Arch::ScmpArchSheb => ScmpArch::Sheb,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile(json: &str) -> LinuxSeccomp {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn a_profile_becomes_flags_and_instructions() {
        let profile = profile(
            r#"{"defaultAction":"SCMP_ACT_ERRNO","architectures":["SCMP_ARCH_X86_64"],
                "flags":["SECCOMP_FILTER_FLAG_LOG"],
                "syscalls":[{"names":["read","write","no_such_call"],"action":"SCMP_ACT_ALLOW"},
                {"names":["clone"],"action":"SCMP_ACT_ALLOW",
                 "args":[{"index":0,"value":2114060288,"valueTwo":0,"op":"SCMP_CMP_MASKED_EQ"}]}]}"#,
        );
        let compiled = compile(&profile).unwrap();
        assert_eq!(compiled.get(..4), Some(&[2, 0, 0, 0][..]));
        assert!(compiled.len() > 4 + 8 * 5);
        assert_eq!((compiled.len() - 4) % 8, 0);
    }

    #[test]
    fn a_compiled_profile_begins_with_what_answers_unknown_calls() {
        let refusing = r#""syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW"}]}"#;
        let refusing = profile(&format!(r#"{{"defaultAction":"SCMP_ACT_ERRNO",{refusing}"#));
        let stub = unknown_calls::stub(&refusing, &[]);
        let compiled = compile(&refusing).unwrap();
        assert!(!stub.is_empty());
        let (begin, filter) = compiled.split_at(4).1.split_at(stub.len());
        assert_eq!(begin, stub);
        // The filter itself is whole: it loads the architecture first (`BPF_LD | BPF_W | BPF_ABS`).
        assert_eq!(filter.get(..8), Some(&[0x20, 0, 0, 0, 4, 0, 0, 0][..]));
    }

    #[test]
    fn a_listener_is_refused() {
        let profile = profile(
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_NOTIFY"}]}"#,
        );
        assert!(matches!(compile(&profile), Err(AgentError::Invalid(_))));
    }
}
