//! A container's device rules, assembled to a BPF program: run here as the kernel would, it keeps the guest's disks out
//! of reach.
#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use oci_spec::runtime::LinuxDeviceCgroup;
use ravelin_agent::container::fuzzing::program;

const VALUES: [&str; 8] = [
    r#"{"allow": true, "access": "rwm"}"#,
    r#"{"allow": false, "access": "rwm"}"#,
    r#"{"allow": true, "type": "b", "major": 254, "minor": 0, "access": "rw"}"#,
    r#"{"allow": true, "type": "c", "major": 10, "minor": -1, "access": "r"}"#,
    r#"{"allow": false, "type": "a", "major": -1}"#,
    r#"{"allow": true, "type": "u", "access": ""}"#,
    "4294967296",
    "\"mwr\"",
];

const BLOCK: u32 = 1;
const CHAR: u32 = 2;
const DISK: i32 = 254;

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    ravelin_fuzz::json::mutate(data, size, max_size, seed, &VALUES)
});

fuzz_target!(|text: &[u8]| {
    let Ok(rules) = serde_json::from_slice::<Vec<LinuxDeviceCgroup>>(text) else { return };
    let Ok(program) = program(&rules, &[DISK]) else { return };
    for access in 1..8 {
        // Reading or writing a disk, whatever the rules say; making a node is allowed.
        assert_eq!(run(&program, BLOCK, DISK, 0, access), access == 1 && run(&program, BLOCK, DISK, 1, 1));
        // /dev/null is everybody's.
        assert!(run(&program, CHAR, 1, 3, access));
        for rule in &rules {
            let number =
                |number: Option<i64>| number.and_then(|number| i32::try_from(number).ok()).unwrap_or(7);
            run(&program, CHAR, number(rule.major()), number(rule.minor()), access);
        }
    }
});

/// Runs a program on one access; it ends, within itself.
fn run(program: &[(u8, u8, i16, i32)], kind: u32, major: i32, minor: i32, access: u32) -> bool {
    let context = [access << 16 | kind, major.cast_unsigned(), minor.cast_unsigned()];
    let mut registers = [0_u64; 11];
    let mut at = 0;
    loop {
        let (code, operands, offset, immediate) = program[at];
        let (to, from) = (usize::from(operands & 15), usize::from(operands >> 4));
        let immediate = i64::from(immediate).cast_unsigned();
        at += 1;
        let mut jump = |taken: bool| {
            if taken {
                at += usize::try_from(offset).unwrap();
            }
        };
        match code {
            0x61 => registers[to] = context[usize::try_from(offset).unwrap() / 4].into(),
            0xb7 => registers[to] = immediate,
            0xbf => registers[to] = registers[from],
            0x57 => registers[to] &= immediate,
            0x77 => registers[to] >>= immediate,
            0x15 => jump(registers[to] == immediate),
            0x55 => jump(registers[to] != immediate),
            0x95 => return registers[0] != 0,
            code => panic!("instruction {code:#x}"),
        }
    }
}
