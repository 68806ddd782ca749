use super::*;

fn config() -> MachineConfig {
    MachineConfig {
        vcpus: 1,
        memory_mib: 64,
        balloon_mib: 0,
        mac: [2, 0, 0, 0, 0, 1],
        mtu: 1500,
        tap_queues: 1,
        console: false,
        extra_cmdline: String::new(),
    }
}

#[test]
fn impossible_machines_are_refused() {
    let bad: [fn(&mut MachineConfig); 10] = [
        |config| config.vcpus = 0,
        |config| config.vcpus = 33,
        |config| config.memory_mib = 63,
        |config| config.memory_mib = 131_073,
        |config| config.memory_mib = 0,
        |config| config.balloon_mib = 1,
        |config| config.tap_queues = 0,
        |config| config.tap_queues = 33,
        |config| config.mtu = 0,
        |config| config.mtu = 67,
    ];
    assert!(resources::check(&config()).is_ok());
    for change in bad {
        let mut config = config();
        change(&mut config);
        assert!(matches!(resources::check(&config), Err(MachineError::Config(_))), "{config:?}");
    }
}

#[test]
fn the_number_of_descriptors_must_be_right() {
    let fds =
        |count: usize| -> Vec<OwnedFd> { (0..count).map(|_| tempfile::tempfile().unwrap().into()).collect() };
    let mut config = config();
    assert!(matches!(
        Resources::take(&config, fds(4)),
        Err(MachineError::Descriptors { expected: 5, got: 4 })
    ));
    assert!(Resources::take(&config, fds(5)).is_ok());
    config.console = true;
    config.tap_queues = 32;
    assert!(Resources::take(&config, fds(37)).unwrap().console.is_some());
}

#[test]
fn a_descriptor_that_is_not_kvm_is_told_apart() {
    let notices = Mailbox::new().unwrap();
    let fds = (0..5).map(|_| tempfile::tempfile().unwrap().into()).collect();
    let error = Built::build(&config(), fds, &notices).unwrap_err();
    assert!(matches!(error, MachineError::Missing(_)), "{error}");
}
