//! What a process's spec says about its share of processors and disks, applied to the calling process.

use std::io;

use oci_spec::runtime::{
    IOPriorityClass, LinuxIOPriority, LinuxSchedulerFlag, LinuxSchedulerPolicy, Process, Scheduler,
};

use crate::error::{Attempt, Result};

/// Applies both, as far as the process's spec has them.
///
/// # Errors
///
/// When the kernel refuses.
pub(super) fn apply(process: &Process) -> Result<()> {
    if let Some(priority) = process.io_priority() {
        set_io_priority(*priority).attempt(|| format!("set the I/O priority {priority:?}"))?;
    }
    if let Some(scheduler) = process.scheduler() {
        set_scheduler(scheduler).attempt(|| format!("set the scheduler {scheduler:?}"))?;
    }
    Ok(())
}

/// `ioprio_set(2)`: the class above thirteen bits of priority.
fn set_io_priority(priority: LinuxIOPriority) -> io::Result<()> {
    const WHO_PROCESS: libc::c_int = 1;
    const CLASS_SHIFT: u32 = 13;
    let class: i64 = match priority.class() {
        IOPriorityClass::IoprioClassRt => 1,
        IOPriorityClass::IoprioClassBe => 2,
        IOPriorityClass::IoprioClassIdle => 3,
    };
    // SAFETY: the call takes plain numbers.
    let set = unsafe {
        libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, (class << CLASS_SHIFT) | priority.priority())
    };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `sched_setattr(2)`.
fn set_scheduler(scheduler: &Scheduler) -> io::Result<()> {
    let policy = match scheduler.policy() {
        LinuxSchedulerPolicy::SchedOther => 0,
        LinuxSchedulerPolicy::SchedFifo => 1,
        LinuxSchedulerPolicy::SchedRr => 2,
        LinuxSchedulerPolicy::SchedBatch => 3,
        LinuxSchedulerPolicy::SchedIso => 4,
        LinuxSchedulerPolicy::SchedIdle => 5,
        LinuxSchedulerPolicy::SchedDeadline => 6,
    };
    let flags = scheduler.flags().iter().flatten().fold(0, |flags, flag| {
        flags
            | match flag {
                LinuxSchedulerFlag::SchedResetOnFork => 0x01,
                LinuxSchedulerFlag::SchedFlagReclaim => 0x02,
                LinuxSchedulerFlag::SchedFlagDLOverrun => 0x04,
                LinuxSchedulerFlag::SchedFlagKeepPolicy => 0x08,
                LinuxSchedulerFlag::SchedFlagKeepParams => 0x10,
                LinuxSchedulerFlag::SchedFlagUtilClampMin => 0x20,
                LinuxSchedulerFlag::SchedFlagUtilClampMax => 0x40,
            }
    });
    let attributes = libc::sched_attr {
        // The structure's first version, of 48 bytes.
        size: 48,
        sched_policy: policy,
        sched_flags: flags,
        sched_nice: scheduler.nice().unwrap_or(0),
        sched_priority: scheduler.priority().unwrap_or(0).cast_unsigned(),
        sched_runtime: scheduler.runtime().unwrap_or(0),
        sched_deadline: scheduler.deadline().unwrap_or(0),
        sched_period: scheduler.period().unwrap_or(0),
    };
    // SAFETY: the kernel reads `size` bytes of `attributes`, which has as many and lives through the call.
    let set = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
