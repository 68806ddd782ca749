use super::*;

/// Runs a program on one access, as the kernel would.
fn run(program: &[Instruction], kind: u32, major: i32, minor: i32, access: u32) -> bool {
    let context = [access << 16 | kind, major.cast_unsigned(), minor.cast_unsigned()];
    let mut registers = [0_u64; 11];
    let mut at = 0;
    loop {
        let step = program[at];
        let (to, from) = (usize::from(step.registers & 15), usize::from(step.registers >> 4));
        let immediate = i64::from(step.immediate).cast_unsigned();
        at += 1;
        let mut jump = |taken: bool| {
            if taken {
                at += usize::try_from(step.offset).unwrap();
            }
        };
        match step.code {
            LOAD_WORD => registers[to] = context[usize::try_from(step.offset).unwrap() / 4].into(),
            MOVE_IMMEDIATE => registers[to] = immediate,
            MOVE_REGISTER => registers[to] = registers[from],
            AND => registers[to] &= immediate,
            SHIFT_RIGHT => registers[to] >>= immediate,
            JUMP_EQUAL => jump(registers[to] == immediate),
            JUMP_NOT_EQUAL => jump(registers[to] != immediate),
            EXIT => return registers[0] != 0,
            code => panic!("instruction {code:#x}"),
        }
    }
}

fn program(rules: &str) -> Vec<Instruction> {
    let rules: Vec<LinuxDeviceCgroup> = serde_json::from_str(rules).unwrap();
    assemble(&complete(&rules, &[254, 259]).unwrap())
}

#[test]
fn an_ordinary_container_has_the_usual_devices_and_no_disk() {
    let program = program(r#"[{"allow":false,"access":"rwm"}]"#);
    for (major, minor) in [(1, 3), (1, 5), (1, 9), (5, 0), (5, 2), (136, 7)] {
        assert!(run(&program, CHAR, major, minor, READ | WRITE), "char {major}:{minor}");
    }
    assert!(!run(&program, CHAR, 1, 1, READ), "/dev/mem");
    assert!(!run(&program, CHAR, 10, 229, READ), "/dev/fuse");
    assert!(run(&program, BLOCK, 254, 0, MKNOD), "a node may be made");
    for (major, minor) in [(254, 0), (254, 16), (259, 3), (7, 0)] {
        assert!(!run(&program, BLOCK, major, minor, READ), "block {major}:{minor}");
        assert!(!run(&program, BLOCK, major, minor, WRITE), "block {major}:{minor}");
        assert!(!run(&program, BLOCK, major, minor, READ | MKNOD), "block {major}:{minor}");
    }
}

#[test]
fn even_allow_all_leaves_the_guests_disks_out() {
    let program = program(r#"[{"allow":true,"access":"rwm"}]"#);
    assert!(run(&program, CHAR, 1, 1, READ | WRITE));
    assert!(run(&program, BLOCK, 7, 0, READ | WRITE));
    assert!(!run(&program, BLOCK, 254, 0, READ));
    assert!(!run(&program, BLOCK, 259, 40, WRITE));
}

#[test]
fn a_device_of_the_spec_is_allowed_with_its_access_only() {
    let program = program(
        r#"[{"allow":false,"access":"rwm"},{"allow":true,"type":"c","major":10,"minor":200,"access":"r"}]"#,
    );
    assert!(run(&program, CHAR, 10, 200, READ));
    assert!(!run(&program, CHAR, 10, 200, READ | WRITE));
    assert!(!run(&program, CHAR, 10, 201, READ));
}

#[test]
fn the_last_matching_rule_counts() {
    let program = program(
        r#"[{"allow":true,"type":"c","major":10,"access":"rwm"},
            {"allow":false,"type":"c","major":10,"minor":5,"access":"w"}]"#,
    );
    assert!(run(&program, CHAR, 10, 4, READ | WRITE));
    assert!(run(&program, CHAR, 10, 5, READ));
    assert!(!run(&program, CHAR, 10, 5, READ | WRITE));
}

#[test]
fn no_code_is_out_of_reach() {
    let program =
        program(r#"[{"allow":true,"type":"c","major":10,"access":"rwm"},{"allow":false,"access":"rwm"}]"#);
    // The catch-all rule ends the program.
    let exits = program.iter().filter(|step| step.code == EXIT).count();
    assert_eq!(exits, DEFAULTS.len() + 2 + 1);
}

#[test]
fn malformed_rules_are_refused() {
    for rule in [
        r#"[{"allow":true,"access":"rx"}]"#,
        r#"[{"allow":true,"type":"c","major":99999999999}]"#,
        r#"[{"allow":true,"type":"p"}]"#,
    ] {
        let rules: Vec<LinuxDeviceCgroup> = serde_json::from_str(rule).unwrap();
        assert!(matches!(complete(&rules, &[]), Err(AgentError::Invalid(_))), "{rule}");
    }
}
