//! The table: the system calls of the file server. Any other one ends the process.

use std::collections::BTreeMap;

use libc::{
    AT_EMPTY_PATH, F_DUPFD_CLOEXEC, F_GETFD, PROT_EXEC, SYS_brk, SYS_capget, SYS_capset, SYS_clock_nanosleep,
    SYS_close, SYS_copy_file_range, SYS_exit, SYS_exit_group, SYS_fallocate, SYS_fchmodat, SYS_fchownat,
    SYS_fcntl, SYS_fdatasync, SYS_fstat, SYS_fstatfs, SYS_fsync, SYS_ftruncate, SYS_futex, SYS_getdents64,
    SYS_getpid, SYS_getrandom, SYS_gettid, SYS_getxattr, SYS_linkat, SYS_listxattr, SYS_lseek, SYS_madvise,
    SYS_mkdirat, SYS_mknodat, SYS_mmap, SYS_mprotect, SYS_mremap, SYS_munmap, SYS_name_to_handle_at,
    SYS_newfstatat, SYS_openat, SYS_ppoll, SYS_pread64, SYS_pwrite64, SYS_pwritev2, SYS_readlinkat,
    SYS_recvfrom, SYS_recvmsg, SYS_removexattr, SYS_renameat2, SYS_restart_syscall, SYS_rt_sigprocmask,
    SYS_rt_sigreturn, SYS_sched_getaffinity, SYS_sched_yield, SYS_sendto, SYS_setfsgid, SYS_setfsuid,
    SYS_setxattr, SYS_sigaltstack, SYS_statx, SYS_symlinkat, SYS_syncfs, SYS_tgkill, SYS_umask, SYS_unlinkat,
    SYS_utimensat, SYS_write,
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};

use super::{JailError, failed};

/// A system call, and when it is allowed.
struct Row(libc::c_long, When);

/// A condition on one of a call's arguments, which count from 0.
enum When {
    Always,
    /// The lower half of the argument is one of these values.
    OneOf(u8, &'static [i32]),
    /// None of these bits of the argument is set.
    Clear(u8, i32),
}

use When::{Always, Clear, OneOf};

const CALLS: &[Row] = &[
    // Requests and replies; the shim's orders.
    Row(SYS_recvfrom, Always),
    Row(SYS_sendto, Always),
    Row(SYS_recvmsg, Always),
    Row(SYS_ppoll, Always),
    // Finding and opening files.
    Row(SYS_openat, Always),
    Row(SYS_close, Always),
    // Programs that are built for debugging look whether what they close is open.
    Row(SYS_fcntl, OneOf(1, &[F_DUPFD_CLOEXEC, F_GETFD])),
    Row(SYS_fstat, Always),
    Row(SYS_newfstatat, Always),
    Row(SYS_statx, Always),
    // Of a file that is open. Nothing is opened by a handle: that takes another call, and a capability.
    Row(SYS_name_to_handle_at, OneOf(4, &[AT_EMPTY_PATH])),
    Row(SYS_fstatfs, Always),
    Row(SYS_readlinkat, Always),
    Row(SYS_getdents64, Always),
    Row(SYS_lseek, Always),
    // Reading and writing them.
    Row(SYS_pread64, Always),
    Row(SYS_pwrite64, Always),
    Row(SYS_pwritev2, Always),
    Row(SYS_copy_file_range, Always),
    Row(SYS_fallocate, Always),
    Row(SYS_ftruncate, Always),
    Row(SYS_fsync, Always),
    Row(SYS_fdatasync, Always),
    Row(SYS_syncfs, Always),
    // Names.
    Row(SYS_mkdirat, Always),
    Row(SYS_mknodat, Always),
    Row(SYS_symlinkat, Always),
    Row(SYS_linkat, Always),
    Row(SYS_unlinkat, Always),
    Row(SYS_renameat2, Always),
    // Attributes.
    Row(SYS_fchmodat, Always),
    Row(SYS_fchownat, Always),
    Row(SYS_utimensat, Always),
    Row(SYS_getxattr, Always),
    Row(SYS_listxattr, Always),
    Row(SYS_setxattr, Always),
    Row(SYS_removexattr, Always),
    // In whose name.
    Row(SYS_setfsuid, Always),
    Row(SYS_setfsgid, Always),
    Row(SYS_capget, Always),
    Row(SYS_capset, Always),
    Row(SYS_umask, Always),
    // Memory, never executable.
    Row(SYS_brk, Always),
    Row(SYS_mmap, Clear(2, PROT_EXEC)),
    Row(SYS_mprotect, Clear(2, PROT_EXEC)),
    Row(SYS_mremap, Always),
    Row(SYS_munmap, Always),
    Row(SYS_madvise, Always),
    // The allocator asks how many processors there are.
    Row(SYS_sched_getaffinity, Always),
    // The seed of hash tables.
    Row(SYS_getrandom, Always),
    // Waiting for each other; the log; the end.
    Row(SYS_futex, Always),
    Row(SYS_sched_yield, Always),
    Row(SYS_clock_nanosleep, Always),
    Row(SYS_restart_syscall, Always),
    Row(SYS_write, Always),
    Row(SYS_rt_sigprocmask, Always),
    Row(SYS_rt_sigreturn, Always),
    Row(SYS_sigaltstack, Always),
    Row(SYS_getpid, Always),
    Row(SYS_gettid, Always),
    Row(SYS_tgkill, Always),
    Row(SYS_exit, Always),
    Row(SYS_exit_group, Always),
];

/// Filters the system calls of all threads of this process from now on.
///
/// # Errors
/// When the kernel does not take the filter.
pub fn restrict() -> Result<(), JailError> {
    let make = || {
        let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
        for Row(call, when) in CALLS {
            rules.insert(*call, when.rules()?);
        }
        let filter =
            SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, TargetArch::x86_64)?;
        let program: BpfProgram = filter.try_into()?;
        seccompiler::apply_filter_all_threads(&program)
    };
    make().map_err(failed("load its seccomp filter"))
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
            Clear(argument, bits) => {
                Ok(vec![rule(*argument, SeccompCmpOp::MaskedEq(u64::from(bits.cast_unsigned())), 0)?])
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
        let calls: BTreeSet<_> = CALLS.iter().map(|Row(call, _)| *call).collect();
        assert_eq!(calls.len(), CALLS.len());
    }

    #[test]
    fn what_gives_a_node_away_is_not_in_the_table() {
        let dangerous = [
            libc::SYS_mount,
            libc::SYS_umount2,
            libc::SYS_pivot_root,
            libc::SYS_chroot,
            libc::SYS_chdir,
            libc::SYS_fchdir,
            libc::SYS_open_tree,
            libc::SYS_move_mount,
            libc::SYS_open_by_handle_at,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_clone,
            libc::SYS_clone3,
            libc::SYS_fork,
            libc::SYS_vfork,
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_ptrace,
            libc::SYS_process_vm_readv,
            libc::SYS_kill,
            libc::SYS_tkill,
            libc::SYS_pidfd_open,
            libc::SYS_pidfd_getfd,
            libc::SYS_bpf,
            libc::SYS_keyctl,
            libc::SYS_add_key,
            libc::SYS_io_uring_setup,
            libc::SYS_userfaultfd,
            libc::SYS_ioctl,
            libc::SYS_prctl,
            libc::SYS_setuid,
            libc::SYS_setresuid,
            libc::SYS_setgroups,
            libc::SYS_seccomp,
            libc::SYS_socket,
            libc::SYS_socketpair,
            libc::SYS_connect,
            libc::SYS_bind,
            libc::SYS_sendmsg,
            libc::SYS_memfd_create,
            libc::SYS_quotactl,
        ];
        for call in dangerous {
            assert!(CALLS.iter().all(|Row(other, _)| *other != call), "{call}");
        }
    }
}
