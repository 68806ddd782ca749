//! Seccomp profiles of users, compiled to the kernel's BPF.
#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use oci_spec::runtime::LinuxSeccomp;
use ravelin_agent::container::seccomp::compile;

const VALUES: [&str; 16] = [
    "\"SCMP_ACT_ALLOW\"",
    "\"SCMP_ACT_ERRNO\"",
    "\"SCMP_ACT_KILL_PROCESS\"",
    "\"SCMP_ACT_TRACE\"",
    "\"SCMP_ACT_LOG\"",
    "[\"SCMP_ARCH_X86_64\", \"SCMP_ARCH_X86\", \"SCMP_ARCH_X32\"]",
    "[\"SCMP_ARCH_S390X\", \"SCMP_ARCH_RISCV64\"]",
    "[\"SECCOMP_FILTER_FLAG_LOG\", \"SECCOMP_FILTER_FLAG_TSYNC\"]",
    r#"{"index": 0, "value": 2114060288, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}"#,
    r#"{"index": 7, "value": 1, "op": "SCMP_CMP_GT"}"#,
    r#"{"names": ["openat", "clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}"#,
    r#"{"names": ["socket"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 40, "op": "SCMP_CMP_NE"}]}"#,
    "\"SCMP_CMP_LE\"",
    "\"io_uring_setup\"",
    "18446744073709551615",
    "65536",
];

/// `BPF_JMP` and `BPF_RET`, as classes of instructions.
const JUMP: u16 = 5;
const RETURN: u16 = 6;

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    ravelin_fuzz::json::mutate(data, size, max_size, seed, &VALUES)
});

fuzz_target!(|text: &[u8]| {
    let Ok(profile) = serde_json::from_slice::<LinuxSeccomp>(text) else { return };
    let Ok(compiled) = compile(&profile) else { return };
    let (flags, program) = compiled.split_at(4);
    assert!(flags[0] < 8 && flags[1..] == [0, 0, 0]);
    assert!(!program.is_empty() && program.len().is_multiple_of(8));
    let steps: Vec<_> = program.chunks_exact(8).collect();
    // What the kernel looks at first: that every jump leads to an instruction and the last one returns.
    for (at, step) in steps.iter().enumerate() {
        let code = u16::from_ne_bytes([step[0], step[1]]);
        if code & 7 == JUMP {
            let always = u32::from_ne_bytes([step[4], step[5], step[6], step[7]]) as usize;
            let farthest = if code == JUMP { always } else { usize::from(step[2].max(step[3])) };
            assert!(at + 1 + farthest < steps.len(), "instruction {at} of {} jumps out", steps.len());
        }
    }
    assert_eq!(steps.last().unwrap()[0] & 7, RETURN as u8);
});
