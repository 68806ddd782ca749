//! Core scheduling: two threads of one processor core never run this machine and something else at the same time.

/// `PIDTYPE_TGID` of `prctl(PR_SCHED_CORE)`: the whole process, with the threads that it makes later.
const WHOLE_PROCESS: libc::c_ulong = 1;

/// Gives the process a cookie of its own. Hosts whose kernel or processor has no core scheduling have none to give
/// (Documentation/admin-guide/hw-vuln/core-scheduling.rst); then nothing changes.
pub(super) fn keep_apart() {
    // SAFETY: PR_SCHED_CORE_CREATE takes its arguments by value; process 0 is the caller.
    unsafe { libc::prctl(libc::PR_SCHED_CORE, libc::PR_SCHED_CORE_CREATE, 0, WHOLE_PROCESS, 0) };
}
