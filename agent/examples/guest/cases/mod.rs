//! The cases: each a short story told to the agent by its host.

mod apparmor;
mod boot;
mod exec;
mod isolation;
mod joining;
mod kernel;
mod lifecycle;
mod resources;
mod stdio;
mod user_namespace;
mod volumes;

use std::path::Path;
use std::time::{Duration, Instant};

use ravelin_proto::agent as api;
use tonic::Code;

use crate::held::Held;
use crate::host::{Client, USER_NAMESPACE, connect};

/// Runs every case whose name contains `CASE`, each in a process of its own, ends with the closing line of Rust's
/// test runner, and restarts the guest.
pub fn run() {
    let begin = Instant::now();
    let only = std::env::var("CASE").unwrap_or_default();
    let (mut passed, mut failed, mut filtered) = (0, 0, 0);
    // Every case builds on it.
    let ready = in_child("set_up", set_up);
    if ready {
        passed += 1;
    } else {
        failed += 1;
    }
    macro_rules! cases {
        ($($theme:ident::$case:ident),* $(,)?) => {$(
            let name = concat!(stringify!($theme), "::", stringify!($case));
            if !ready || !name.contains(&only) {
                filtered += 1;
            } else if in_child(name, $theme::$case) {
                passed += 1;
            } else {
                failed += 1;
            }
        )*};
    }
    if USER_NAMESPACE.is_set() {
        cases!(
            user_namespace::ids,
            user_namespace::root_is_nobody_outside,
            user_namespace::network,
            user_namespace::dialled,
            user_namespace::limits,
            user_namespace::own_cgroups,
            user_namespace::volumes,
            user_namespace::shared_pids,
            user_namespace::refused,
            lifecycle::signals,
            stdio::output_apart,
            stdio::standard_input,
            stdio::terminal,
            stdio::user_terminal,
            exec::exec_cases,
            exec::exec_terminal,
            exec::exec_attributes,
            exec::exec_inherits,
            exec::home,
            isolation::isolation,
            isolation::readonly,
            isolation::tight_seccomp,
            isolation::users,
            apparmor::profiles,
            volumes::volumes,
            volumes::subpaths,
            lifecycle::restart,
        );
        return end(passed, failed, filtered, begin);
    }
    cases!(
        boot::cgroups_are_delegated,
        boot::nothing_is_left_of_the_initramfs,
        lifecycle::plain_run,
        lifecycle::start_held_up,
        lifecycle::errors,
        lifecycle::signals,
        lifecycle::pause,
        stdio::output_apart,
        stdio::big_output,
        stdio::standard_input,
        stdio::terminal,
        stdio::user_terminal,
        stdio::daemon_keeps_stdout,
        stdio::null_streams,
        exec::exec_cases,
        exec::exec_before_start,
        exec::exec_terminal,
        exec::exec_many,
        exec::exec_leaves_nothing,
        exec::exec_own_cgroups,
        exec::exec_attributes,
        exec::exec_scheduling,
        exec::exec_given_up,
        exec::exec_inherits,
        joining::execs_show_nothing_of_the_agent,
        lifecycle::create_given_up,
        exec::home,
        exec::not_what_it_seems,
        isolation::isolation,
        isolation::rootfs,
        isolation::readonly,
        isolation::devices,
        isolation::privileged_devices,
        isolation::lifted_device_rules,
        isolation::cgroup_boundary,
        isolation::cgroups_without_end,
        isolation::tight_seccomp,
        isolation::users,
        isolation::shared_pids,
        isolation::target_pids,
        kernel::sockets,
        kernel::links,
        kernel::calls_of_32_bits,
        kernel::files_of_32_bits,
        kernel::what_is_built_in,
        kernel::mitigations,
        isolation::session_keyring,
        apparmor::profiles,
        apparmor::profiles_of_execs,
        apparmor::refused_profiles,
        volumes::volumes,
        volumes::subpaths,
        volumes::links,
        volumes::propagation,
        volumes::at_once,
        volumes::room,
        volumes::made_writable,
        resources::limits,
        resources::oom,
        resources::fork_bomb,
        resources::stats,
        resources::no_more_threads,
        lifecycle::restart,
        lifecycle::half_removed_layer,
        lifecycle::refused_layer,
    );
    end(passed, failed, filtered, begin);
}

fn end(passed: u32, failed: u32, filtered: u32, begin: Instant) {
    println!(
        "test result: {}. {passed} passed; {failed} failed; 0 ignored; 0 measured; {filtered} filtered out; finished in {:.2}s",
        if failed == 0 { "ok" } else { "FAILED" },
        begin.elapsed().as_secs_f64()
    );
    // SAFETY: a plain system call; QEMU ends where the guest restarts.
    unsafe { libc::reboot(libc::RB_AUTOBOOT) };
}

fn in_child<F: Future<Output = ()>>(name: &str, case: impl FnOnce(Client) -> F) -> bool {
    // SAFETY: this process has one thread.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            tokio::time::timeout(Duration::from_secs(300), async { case(connect().await).await })
                .await
                .expect("the case ends");
        });
        std::process::exit(0);
    }
    let mut status = 0;
    // SAFETY: `status` lives through the call.
    unsafe { libc::waitpid(pid, &raw mut status, 0) };
    println!("test {name} ... {}", if status == 0 { "ok" } else { "FAILED" });
    status == 0
}

/// Waits until the agent waits for a file, and sees that it answers other calls all the same.
async fn keeps_nobody(client: &Client, held: &Held) {
    held.is_waited_for().await;
    let mut client = client.clone();
    let nobody = api::ProcessRequest { container_id: "nobody".into(), exec_id: String::new() };
    let answer = tokio::time::timeout(Duration::from_secs(20), client.wait(nobody)).await;
    assert_eq!(answer.expect("others are answered").unwrap_err().code(), Code::NotFound);
}

async fn set_up(mut client: Client) {
    resources::a_thread_from_the_start(&client).await;
    let interface = if USER_NAMESPACE.is_set() {
        let mac = std::fs::read_to_string("/sys/class/net/dummy0/address").unwrap();
        let mac: Vec<u8> = mac.trim().split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
        api::Interface {
            name: "eth0".into(),
            mac: mac.into(),
            addresses: vec!["10.9.8.7/24".into()],
            mtu: 1400,
        }
    } else {
        // The loopback interface stands for the pod's: it has an address of zeroes.
        api::Interface { name: "lo".into(), mac: vec![0; 6].into(), ..Default::default() }
    };
    let name = interface.name.clone();
    let metric = api::RouteMetric { congestion_control: "cubic".into(), ..Default::default() };
    let route = api::Route {
        family: 4,
        destination: "203.0.113.0/24".into(),
        device: name.clone(),
        metrics: vec![metric],
        ..Default::default()
    };
    let request = api::SetupSandboxRequest {
        protocol_version: ravelin_proto::PROTOCOL_VERSION,
        sandbox_id: "s".into(),
        hostname: "pod-1".into(),
        shared_pid_namespace: true,
        sysctls: [("net.ipv4.ip_unprivileged_port_start".to_owned(), "80".to_owned())].into(),
        interfaces: vec![interface],
        routes: vec![route],
        user_namespace: USER_NAMESPACE.asked(),
        tunables: [("net.ipv4.tcp_rmem".to_owned(), user_namespace::TCP_RMEM.to_owned())].into(),
        ..Default::default()
    };
    let (mut other, copy) = (client.clone(), request.clone());
    let setting_up = async move { other.setup_sandbox(copy).await };
    let answer = if USER_NAMESPACE.is_set() {
        // Its network namespace has files of its own below /proc/sys.
        setting_up.await.unwrap().into_inner()
    } else {
        // The files that it opens on the way, in their order.
        let files = ["ipv4/ip_unprivileged_port_start", "ipv6/conf/lo/accept_dad"];
        let [sysctl, accept_dad] = files.map(|file| Held::at(Path::new("/proc/sys/net").join(file)));
        let controls = Held::at("/proc/sys/net/ipv4/tcp_available_congestion_control");
        let setting_up = tokio::spawn(setting_up);
        for written in [sysctl, accept_dad] {
            keeps_nobody(&client, &written).await;
            written.let_write();
        }
        keeps_nobody(&client, &controls).await;
        controls.let_read();
        setting_up.await.unwrap().unwrap().into_inner()
    };
    println!("guest kernel {}", answer.kernel_release);
    assert_eq!(client.setup_sandbox(request).await.unwrap_err().code(), Code::FailedPrecondition);
    for (id, offset) in [(1, 0), (2, 64 << 20)] {
        let extent =
            api::AddExtentRequest { id, disk: 0, offset, length: 16 << 20, filesystem: "erofs".into() };
        client.add_extent(extent.clone()).await.unwrap();
        client.add_extent(extent).await.unwrap();
    }
}
