//! The table: the system calls of a confined program.
//!
//! Every other one fails as on a kernel that does not have it, for which C libraries and programs are prepared. What is
//! read, written and executed is bounded by the program's view; after the first `execve` a second gains nothing, for all of
//! the confinement lasts.

use std::collections::BTreeMap;

use libc::{
    CLONE_NEWCGROUP, CLONE_NEWIPC, CLONE_NEWNET, CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWUSER, CLONE_NEWUTS,
    CLONE_PARENT, CLONE_THREAD, CLONE_VM, F_DUPFD_CLOEXEC, F_GETFD, F_GETFL, F_SETFD, SYS_access,
    SYS_arch_prctl, SYS_brk, SYS_clock_gettime, SYS_clone, SYS_close, SYS_copy_file_range, SYS_execve,
    SYS_exit, SYS_exit_group, SYS_faccessat, SYS_fadvise64, SYS_fallocate, SYS_fcntl, SYS_fdatasync,
    SYS_fstat, SYS_fstatfs, SYS_fsync, SYS_ftruncate, SYS_futex, SYS_getcwd, SYS_getdents64, SYS_getegid,
    SYS_geteuid, SYS_getgid, SYS_getpid, SYS_getppid, SYS_getrandom, SYS_gettid, SYS_gettimeofday,
    SYS_getuid, SYS_lgetxattr, SYS_llistxattr, SYS_lseek, SYS_lstat, SYS_madvise, SYS_mmap, SYS_mprotect,
    SYS_mremap, SYS_munmap, SYS_newfstatat, SYS_open, SYS_openat, SYS_pread64, SYS_preadv, SYS_prlimit64,
    SYS_pwrite64, SYS_pwritev, SYS_read, SYS_readlink, SYS_readlinkat, SYS_readv, SYS_restart_syscall,
    SYS_rseq, SYS_rt_sigaction, SYS_rt_sigprocmask, SYS_rt_sigreturn, SYS_sched_getaffinity, SYS_sched_yield,
    SYS_sendfile, SYS_set_robust_list, SYS_set_tid_address, SYS_stat, SYS_statfs, SYS_statx, SYS_sysinfo,
    SYS_uname, SYS_write, SYS_writev,
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};

use When::{Always, Flags, OneOf};

/// A system call, and when it is allowed.
struct Row(libc::c_long, When);

/// A condition on one of a call's arguments, which count from 0.
enum When {
    Always,
    /// The lower half of the argument is one of these values.
    OneOf(u8, &'static [i32]),
    /// Of these bits of the argument, the first, just those are set that the second has.
    Flags(u8, i32, i32),
}

/// A thread of the process, in the namespaces of the process.
const THREAD: i32 = CLONE_VM | CLONE_THREAD;
/// What a new thread may not have.
const ELSEWHERE: i32 = CLONE_NEWNS
    | CLONE_NEWCGROUP
    | CLONE_NEWUTS
    | CLONE_NEWIPC
    | CLONE_NEWUSER
    | CLONE_NEWPID
    | CLONE_NEWNET
    | CLONE_PARENT;

const CALLS: &[Row] = &[
    // Becoming the program, and its loader's work.
    Row(SYS_execve, Always),
    Row(SYS_arch_prctl, Always),
    Row(SYS_set_tid_address, Always),
    Row(SYS_set_robust_list, Always),
    Row(SYS_rseq, Always),
    Row(SYS_prlimit64, OneOf(0, &[0])),
    // Memory.
    Row(SYS_brk, Always),
    Row(SYS_mmap, Always),
    Row(SYS_mprotect, Always),
    Row(SYS_mremap, Always),
    Row(SYS_munmap, Always),
    Row(SYS_madvise, Always),
    // Looking at a tree.
    Row(SYS_access, Always),
    Row(SYS_faccessat, Always),
    Row(SYS_stat, Always),
    Row(SYS_lstat, Always),
    Row(SYS_fstat, Always),
    Row(SYS_newfstatat, Always),
    Row(SYS_statx, Always),
    Row(SYS_statfs, Always),
    Row(SYS_fstatfs, Always),
    Row(SYS_readlink, Always),
    Row(SYS_readlinkat, Always),
    Row(SYS_llistxattr, Always),
    Row(SYS_lgetxattr, Always),
    Row(SYS_getdents64, Always),
    Row(SYS_getcwd, Always),
    // Reading and writing files.
    Row(SYS_open, Always),
    Row(SYS_openat, Always),
    Row(SYS_close, Always),
    Row(SYS_fcntl, OneOf(1, &[F_GETFD, F_SETFD, F_GETFL, F_DUPFD_CLOEXEC])),
    Row(SYS_lseek, Always),
    Row(SYS_read, Always),
    Row(SYS_readv, Always),
    Row(SYS_pread64, Always),
    Row(SYS_preadv, Always),
    Row(SYS_write, Always),
    Row(SYS_writev, Always),
    Row(SYS_pwrite64, Always),
    Row(SYS_pwritev, Always),
    Row(SYS_copy_file_range, Always),
    Row(SYS_sendfile, Always),
    Row(SYS_fadvise64, Always),
    Row(SYS_fallocate, Always),
    Row(SYS_ftruncate, Always),
    Row(SYS_fsync, Always),
    Row(SYS_fdatasync, Always),
    // Who, when and where it is.
    Row(SYS_getpid, Always),
    Row(SYS_getppid, Always),
    Row(SYS_gettid, Always),
    Row(SYS_getuid, Always),
    Row(SYS_geteuid, Always),
    Row(SYS_getgid, Always),
    Row(SYS_getegid, Always),
    Row(SYS_clock_gettime, Always),
    Row(SYS_gettimeofday, Always),
    Row(SYS_getrandom, Always),
    Row(SYS_sched_getaffinity, Always),
    Row(SYS_sysinfo, Always),
    Row(SYS_uname, Always),
    // Its own signals, and its end.
    Row(SYS_rt_sigaction, Always),
    Row(SYS_rt_sigprocmask, Always),
    Row(SYS_rt_sigreturn, Always),
    Row(SYS_restart_syscall, Always),
    Row(SYS_futex, Always),
    Row(SYS_sched_yield, Always),
    Row(SYS_exit, Always),
    Row(SYS_exit_group, Always),
];

/// What a program may do besides that works in threads. `clone3`, which hides its flags from a filter, is refused to it too,
/// and C libraries fall back on `clone`.
const THREADS: &[Row] = &[Row(SYS_clone, Flags(0, THREAD | ELSEWHERE, THREAD))];

/// The filter of a program that works in threads, or of one that does not.
pub(super) fn filter(threads: bool) -> Result<BpfProgram, seccompiler::Error> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for Row(call, when) in CALLS.iter().chain(if threads { THREADS } else { &[] }) {
        rules.insert(*call, when.rules()?);
    }
    let refusal = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    Ok(SeccompFilter::new(rules, refusal, SeccompAction::Allow, TargetArch::x86_64)?.try_into()?)
}

impl When {
    /// The rules of which one has to match; none if the call is allowed in any case.
    fn rules(&self) -> Result<Vec<SeccompRule>, seccompiler::Error> {
        let rule = |argument, operator, value: i32| {
            let value = u64::from(value.cast_unsigned());
            let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)?;
            Ok::<_, seccompiler::Error>(SeccompRule::new(vec![condition])?)
        };
        match self {
            Always => Ok(Vec::new()),
            OneOf(argument, values) => {
                values.iter().map(|value| rule(*argument, SeccompCmpOp::Eq, *value)).collect()
            }
            Flags(argument, mask, value) => {
                let operator = SeccompCmpOp::MaskedEq(u64::from(mask.cast_unsigned()));
                Ok(vec![rule(*argument, operator, *value)?])
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_call_has_one_line() {
        let calls: BTreeSet<_> = CALLS.iter().chain(THREADS).map(|Row(call, _)| *call).collect();
        assert_eq!(calls.len(), CALLS.len() + THREADS.len());
    }

    #[test]
    fn what_gives_a_node_away_to_an_administrator_is_not_in_the_table() {
        let dangerous = [
            libc::SYS_mount,
            libc::SYS_umount2,
            libc::SYS_pivot_root,
            libc::SYS_chroot,
            libc::SYS_open_tree,
            libc::SYS_move_mount,
            libc::SYS_fsopen,
            libc::SYS_fspick,
            libc::SYS_mount_setattr,
            libc::SYS_open_by_handle_at,
            libc::SYS_name_to_handle_at,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_fork,
            libc::SYS_vfork,
            libc::SYS_clone3,
            libc::SYS_ptrace,
            libc::SYS_process_vm_readv,
            libc::SYS_process_vm_writev,
            libc::SYS_kill,
            libc::SYS_tkill,
            libc::SYS_tgkill,
            libc::SYS_pidfd_open,
            libc::SYS_pidfd_getfd,
            libc::SYS_bpf,
            libc::SYS_perf_event_open,
            libc::SYS_fanotify_init,
            libc::SYS_quotactl,
            libc::SYS_swapon,
            libc::SYS_sethostname,
            libc::SYS_syslog,
            libc::SYS_keyctl,
            libc::SYS_add_key,
            libc::SYS_io_uring_setup,
            libc::SYS_userfaultfd,
            libc::SYS_ioctl,
            libc::SYS_prctl,
            libc::SYS_capset,
            libc::SYS_setuid,
            libc::SYS_setresuid,
            libc::SYS_seccomp,
            libc::SYS_socket,
            libc::SYS_socketpair,
            libc::SYS_connect,
            libc::SYS_memfd_create,
            libc::SYS_shmget,
            libc::SYS_mknodat,
            libc::SYS_linkat,
            libc::SYS_unlinkat,
            libc::SYS_renameat2,
            libc::SYS_fchmod,
            libc::SYS_fchown,
            libc::SYS_setxattr,
            libc::SYS_fsetxattr,
        ];
        for call in dangerous {
            assert!(CALLS.iter().chain(THREADS).all(|Row(other, _)| *other != call), "{call}");
        }
    }
}
