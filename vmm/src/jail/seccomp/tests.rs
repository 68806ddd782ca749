use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};

use super::*;

/// The test below that runs in a process of its own, and what it does there.
const ALONE: (&str, &str) = ("jail::seccomp::tests::in_a_process_of_its_own", "RAVELIN_SECCOMP_ATTEMPT");

#[test]
fn no_line_of_the_table_widens_another() {
    let mut always = BTreeSet::new();
    let mut narrowed = BTreeSet::new();
    for Row(call, threads, when) in CALLS {
        for thread in *threads {
            let set = if matches!(when, When::Always) { &mut always } else { &mut narrowed };
            set.insert((*call, *thread as u8));
        }
    }
    assert_eq!(always.intersection(&narrowed).count(), 0, "a filter would heed the narrower line only");
}

#[test]
fn a_processor_may_make_few_calls() {
    let calls: BTreeSet<_> = CALLS
        .iter()
        .filter(|Row(_, threads, _)| threads.contains(&Thread::Vcpu))
        .map(|Row(call, ..)| call)
        .collect();
    assert!(calls.len() <= 20, "{}", calls.len());
}

#[test]
fn what_gives_a_kernel_away_is_nobodys() {
    let of = |call: libc::c_long| CALLS.iter().any(|Row(other, ..)| *other == call);
    let dangerous = [
        libc::SYS_socket,
        libc::SYS_socketpair,
        libc::SYS_connect,
        libc::SYS_bind,
        libc::SYS_unshare,
        libc::SYS_setns,
        libc::SYS_execve,
        libc::SYS_execveat,
        libc::SYS_fork,
        libc::SYS_vfork,
        libc::SYS_bpf,
        libc::SYS_keyctl,
        libc::SYS_add_key,
        libc::SYS_io_uring_setup,
        libc::SYS_open,
        libc::SYS_openat,
        libc::SYS_openat2,
        libc::SYS_mount,
        libc::SYS_ptrace,
        libc::SYS_process_vm_writev,
        libc::SYS_userfaultfd,
        libc::SYS_perf_event_open,
        libc::SYS_kill,
        libc::SYS_tkill,
        libc::SYS_pidfd_open,
        libc::SYS_memfd_create,
        libc::SYS_shmget,
        libc::SYS_mq_open,
    ];
    for call in dangerous {
        assert!(!of(call), "{call}");
    }
}

/// Runs an attempt under a thread's filter in a process of its own.
fn attempt(thread: Thread, what: &str) -> Output {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", ALONE.0, "--ignored", "--nocapture", "--test-threads=1"])
        .env(ALONE.1, format!("{}:{what}", thread as u8))
        .output()
        .unwrap()
}

/// Makes the attempt that the environment names, and ends with 77 if that was let happen.
#[test]
#[ignore = "another test runs it in a process of its own"]
fn in_a_process_of_its_own() {
    let Ok(attempt) = std::env::var(ALONE.1) else { return };
    let (thread, what) = attempt.split_once(':').unwrap();
    let thread = Thread::ALL[thread.parse::<usize>().unwrap()];
    restrict().unwrap();
    if thread != Thread::Setup {
        tighten(thread);
    }
    let page = 4096;
    let (readable, executable) = (libc::PROT_READ | libc::PROT_WRITE, libc::PROT_READ | libc::PROT_EXEC);
    let private = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: none of the calls touches memory that anything else uses; the process ends here.
    unsafe {
        match what {
            "nothing" => drop(vec![0; 1 << 20]),
            "a thread" => std::thread::spawn(|| {}).join().unwrap(),
            "many threads" => {
                let all = std::sync::Arc::new(std::sync::Barrier::new(24));
                for _ in 1..24 {
                    let all = std::sync::Arc::clone(&all);
                    std::thread::spawn(move || {
                        let mine = vec![1_u8; 1000];
                        all.wait();
                        drop(mine);
                    });
                }
                all.wait();
            }
            "socket" => _ = libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM, 0),
            "unshare" => _ = libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNET),
            "open" => _ = libc::open(c"/".as_ptr(), libc::O_RDONLY),
            "fork" => _ = libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0),
            "clone3" => assert_eq!(libc::syscall(libc::SYS_clone3, 0, 0), -1),
            "keep the tap" => _ = libc::ioctl(-1, 0x4004_54cb, 1),
            "run a processor" => _ = libc::ioctl(-1, 0xae80, 0),
            "executable memory" => {
                _ = libc::mmap(std::ptr::null_mut(), page, executable, private, -1, 0);
            }
            "memory made executable" => {
                let address = libc::mmap(std::ptr::null_mut(), page, readable, private, -1, 0);
                libc::mprotect(address, page, executable);
            }
            "block the signal" => {
                let mut all: libc::sigset_t = std::mem::zeroed();
                libc::sigfillset(&raw mut all);
                libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, std::ptr::null_mut());
                libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0);
            }
            "32 bits" => std::arch::asm!("push rbx", "mov eax, 20", "int 0x80", "pop rbx", out("eax") _),
            other => panic!("{other}"),
        }
        libc::_exit(77)
    }
}

#[test]
fn a_thread_may_do_what_it_is_for() {
    let allowed = [
        (Thread::Setup, "nothing"),
        (Thread::Main, "nothing"),
        (Thread::Disks, "nothing"),
        (Thread::Net, "nothing"),
        (Thread::Sockets, "nothing"),
        (Thread::Vcpu, "nothing"),
        (Thread::Setup, "a thread"),
        (Thread::Disks, "a thread"),
        (Thread::Setup, "many threads"),
        (Thread::Disks, "many threads"),
        (Thread::Setup, "run a processor"),
        (Thread::Vcpu, "run a processor"),
        (Thread::Disks, "clone3"),
    ];
    for (thread, what) in allowed {
        let output = attempt(thread, what);
        assert_eq!(output.status.code(), Some(77), "{thread:?} {what}: {output:?}");
    }
}

#[test]
fn a_forbidden_call_ends_the_process_which_says_what_it_was() {
    let forbidden = BTreeMap::from([
        ("socket", "41 (socket)"),
        ("unshare", "272 (unshare)"),
        ("open", " (open"),
        ("fork", "56 (clone)"),
        ("keep the tap", "16 (ioctl)"),
        ("executable memory", "9 (mmap)"),
        ("memory made executable", "10 (mprotect)"),
    ]);
    for (what, said) in forbidden {
        for thread in Thread::ALL {
            let output = attempt(thread, what);
            let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(
                output.status.code(),
                Some(ExitReason::Forbidden.code().into()),
                "{thread:?} {what}: {output:?}"
            );
            let line = format!("thread {} made the system call", thread.name());
            assert!(stderr.contains(&line) && stderr.contains(said), "{thread:?} {what}: {stderr}");
        }
    }
    let output = attempt(Thread::Net, "run a processor");
    assert_eq!(output.status.code(), Some(ExitReason::Forbidden.code().into()), "{output:?}");
}

#[test]
fn a_process_that_will_not_hear_of_it_is_killed() {
    // The C library blocks all signals while it makes a thread.
    for what in ["block the signal", "32 bits", "a thread"] {
        let output = attempt(Thread::Vcpu, what);
        assert_eq!(output.status.signal(), Some(libc::SIGSYS), "{what}: {output:?}");
    }
}
