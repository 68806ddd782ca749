//! The table: the system calls of the machine's process, which of its threads make them, and with which arguments.

use libc::{
    CLONE_THREAD, CLONE_VM, F_DUPFD_CLOEXEC, F_GETFD, F_GETFL, F_SETFD, F_SETFL, PR_SET_NAME, PROT_EXEC,
    SYS_brk, SYS_clock_gettime, SYS_clock_nanosleep, SYS_clone, SYS_clone3, SYS_close, SYS_epoll_create1,
    SYS_epoll_ctl, SYS_epoll_pwait, SYS_epoll_pwait2, SYS_eventfd2, SYS_exit, SYS_exit_group, SYS_fallocate,
    SYS_fcntl, SYS_fdatasync, SYS_fstat, SYS_futex, SYS_getpid, SYS_getrandom, SYS_gettid, SYS_ioctl,
    SYS_lseek, SYS_madvise, SYS_mmap, SYS_mprotect, SYS_mremap, SYS_munmap, SYS_poll, SYS_ppoll, SYS_prctl,
    SYS_pread64, SYS_preadv, SYS_preadv2, SYS_pwritev, SYS_pwritev2, SYS_read, SYS_readv, SYS_recvmsg,
    SYS_restart_syscall, SYS_rseq, SYS_rt_sigaction, SYS_rt_sigprocmask, SYS_rt_sigreturn,
    SYS_sched_getaffinity, SYS_sched_yield, SYS_seccomp, SYS_sendmsg, SYS_sendto, SYS_set_robust_list,
    SYS_shutdown, SYS_sigaltstack, SYS_statx, SYS_tgkill, SYS_timerfd_create, SYS_timerfd_settime, SYS_write,
    SYS_writev,
};

use super::Thread::{Disks, Main, Net, Setup, Sockets, Vcpu};
use super::When::{Always, Clear, OneOf, Set};
use super::{Row, Thread, ioctls};
use crate::virtio::net::tap;

/// All that run at some time.
const ALL: &[Thread] = &[Main, Disks, Net, Sockets, Vcpu];
/// Those that wait for descriptors.
const LOOPS: &[Thread] = &[Main, Disks, Net, Sockets];
/// The first one only, until the machine runs.
const FIRST: &[Thread] = &[Setup];

pub(super) const CALLS: &[Row] = &[
    // Memory: never executable, never shared.
    Row(SYS_brk, ALL, Always),
    Row(SYS_mmap, ALL, Clear(2, PROT_EXEC as u32)),
    Row(SYS_mprotect, ALL, Clear(2, PROT_EXEC as u32)),
    Row(SYS_mremap, ALL, Always),
    Row(SYS_munmap, ALL, Always),
    Row(SYS_madvise, ALL, Always),
    // The allocator asks how many processors there are.
    Row(SYS_sched_getaffinity, ALL, Always),
    // Waiting for each other, and the ends of threads and of the process.
    Row(SYS_futex, ALL, Always),
    Row(SYS_sched_yield, ALL, Always),
    Row(SYS_restart_syscall, ALL, Always),
    Row(SYS_rt_sigreturn, ALL, Always),
    Row(SYS_rt_sigprocmask, ALL, Always),
    Row(SYS_sigaltstack, ALL, Always),
    Row(SYS_exit, ALL, Always),
    Row(SYS_exit_group, ALL, Always),
    // Eventfds, pipes and the log.
    Row(SYS_read, ALL, Always),
    Row(SYS_write, ALL, Always),
    Row(SYS_close, ALL, Always),
    // Waiting for descriptors and for time.
    Row(SYS_epoll_pwait, LOOPS, Always),
    Row(SYS_epoll_pwait2, LOOPS, Always),
    Row(SYS_epoll_ctl, LOOPS, Always),
    Row(SYS_poll, LOOPS, Always),
    Row(SYS_ppoll, LOOPS, Always),
    Row(SYS_clock_gettime, LOOPS, Always),
    Row(SYS_clock_nanosleep, &[Main, Disks], Always),
    // The control socket and its descriptors, and the file server's; the balloon's and statistics' counters.
    Row(SYS_recvmsg, &[Main, Sockets], Always),
    Row(SYS_sendmsg, &[Main, Sockets], Always),
    Row(SYS_fcntl, &[Main], OneOf(1, &[F_SETFD as u32, F_GETFL as u32, F_SETFL as u32])),
    Row(SYS_pread64, &[Main], Always),
    // Kicks the processors.
    Row(SYS_getpid, &[Main], Always),
    Row(SYS_tgkill, &[Main], Always),
    // Disks and their further threads.
    Row(SYS_preadv, &[Disks], Always),
    Row(SYS_preadv2, &[Disks], Always),
    Row(SYS_pwritev, &[Disks], Always),
    Row(SYS_pwritev2, &[Disks], Always),
    Row(SYS_fdatasync, &[Disks], Always),
    Row(SYS_fallocate, &[Disks], Always),
    Row(SYS_clone, &[Disks], Set(0, (CLONE_VM | CLONE_THREAD) as u32)),
    // Refused by the filter before this one, so that C libraries fall back on `clone`.
    Row(SYS_clone3, &[Disks], Always),
    Row(SYS_set_robust_list, &[Disks], Always),
    Row(SYS_rseq, &[Disks], Always),
    Row(SYS_gettid, &[Disks], Always),
    Row(SYS_prctl, &[Disks], OneOf(0, &[PR_SET_NAME as u32])),
    // The tap.
    Row(SYS_readv, &[Net, Sockets], Always),
    Row(SYS_writev, &[Net, Sockets], Always),
    Row(SYS_ioctl, &[Net], OneOf(1, &[tap::TUNSETOFFLOAD as u32])),
    // Streams.
    Row(SYS_sendto, &[Sockets], Always),
    Row(SYS_shutdown, &[Sockets], Always),
    Row(SYS_fcntl, &[Sockets], OneOf(1, &[F_GETFL as u32, F_SETFL as u32])),
    Row(SYS_timerfd_settime, &[Sockets], Always),
    // Entropy.
    Row(SYS_getrandom, &[Sockets], Always),
    // Processors.
    Row(SYS_ioctl, &[Vcpu], OneOf(1, ioctls::VCPU)),
    // Building the machine, and making threads tighter than this.
    Row(SYS_ioctl, FIRST, OneOf(1, ioctls::KVM_SETUP)),
    Row(
        SYS_ioctl,
        FIRST,
        OneOf(1, &[tap::TUNGETIFF as u32, tap::TUNSETVNETHDRSZ as u32, tap::TUNSETVNETLE as u32]),
    ),
    Row(SYS_fcntl, FIRST, OneOf(1, &[F_GETFD as u32, F_DUPFD_CLOEXEC as u32])),
    Row(SYS_epoll_create1, FIRST, Always),
    Row(SYS_eventfd2, FIRST, Always),
    Row(SYS_timerfd_create, FIRST, Always),
    Row(SYS_fstat, FIRST, Always),
    Row(SYS_statx, FIRST, Always),
    Row(SYS_lseek, FIRST, Always),
    Row(SYS_rt_sigaction, FIRST, Always),
    Row(SYS_seccomp, FIRST, Always),
    Row(SYS_prctl, FIRST, OneOf(0, &[libc::PR_SET_NO_NEW_PRIVS as u32])),
];
