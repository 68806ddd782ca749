//! Seccomp filters: which system calls the process may make, and which each of its threads (table: [`calls`]).
//!
//! The process's own filter is in force before anything from outside is read; it allows what any thread needs, also while
//! the machine is built. Each thread then takes a tighter one, before its first event. A call that is not allowed ends the
//! process ([`violation`]).

mod calls;
mod ioctls;
#[cfg(test)]
mod tests;
mod violation;

use std::collections::BTreeMap;
use std::sync::OnceLock;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};

use super::JailError;
use crate::control::ExitReason;
use crate::log::log;
use calls::CALLS;

/// The kinds of threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Thread {
    /// The first one, while it builds the machine: the whole process's filter.
    Setup,
    /// The first one, when it steers the machine.
    Main,
    /// The disks' device thread, and those that wait for a disk.
    Disks,
    /// The network device's.
    Net,
    /// That of sockets, entropy, the balloon and the file device.
    Sockets,
    /// A virtual processor's.
    Vcpu,
}

impl Thread {
    const ALL: [Self; 6] = [Self::Setup, Self::Main, Self::Disks, Self::Net, Self::Sockets, Self::Vcpu];

    /// What it is called in the host's lists of threads and in the log.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Setup => "first",
            Self::Main => "main",
            Self::Disks => "disks",
            Self::Net => "net",
            Self::Sockets => "sockets",
            Self::Vcpu => "vcpu",
        }
    }
}

/// One line of the table: these threads may make this call when its arguments are so. The first thread may make all, until
/// the machine runs, because a thread's filter can only take away from what the process's allows.
struct Row(libc::c_long, &'static [Thread], When);

/// A condition on one of a call's arguments, which count from 0.
#[derive(Clone, Copy)]
enum When {
    Always,
    /// The lower half of the argument is one of these values.
    OneOf(u8, &'static [u32]),
    /// None of these bits of the argument is set.
    Clear(u8, u32),
    /// All of these bits of the argument are set.
    Set(u8, u32),
}

/// The threads' filters, by [`Thread`]. A process that is not jailed, as one that runs tests, has none.
static FILTERS: OnceLock<Vec<BpfProgram>> = OnceLock::new();

/// Filters the process's calls from now on, and makes its threads' filters ready.
pub(super) fn restrict() -> Result<(), JailError> {
    bound_the_allocator();
    violation::install_handler().map_err(super::failed("handle forbidden system calls"))?;
    let filters = Thread::ALL.map(filter).into_iter().collect::<Result<Vec<_>, _>>();
    let filters = filters.map_err(failed("make its seccomp filters"))?;
    let ours = filters.first().map(Vec::as_slice).unwrap_or_default();
    // In this order: the first allows what it takes to load the second, the second does not.
    for filter in [&without_clone3().map_err(failed("make its seccomp filters"))?, ours] {
        seccompiler::apply_filter(filter).map_err(failed("load its seccomp filters"))?;
    }
    let _ = FILTERS.set(filters);
    violation::this_is(Thread::Setup);
    Ok(())
}

/// Filters this thread's calls from now on, if the process is jailed. The process ends if that fails.
pub fn tighten(thread: Thread) {
    violation::this_is(thread);
    let filter = FILTERS.get().and_then(|filters| filters.get(thread as usize));
    if let Some(filter) = filter
        && let Err(error) = seccompiler::apply_filter(filter)
    {
        log(&format!("Cannot load the seccomp filter of the thread {}: {error}", thread.name()));
        std::process::exit(ExitReason::Error.code().into());
    }
}

/// Says what a thread is that begins with the filter of the one that made it.
pub fn inherit(thread: Thread) {
    violation::this_is(thread);
}

/// Has all threads share a few of the C library's heaps. When there are eight, it would look into a file how many processors
/// there are, to decide whether there may be more.
fn bound_the_allocator() {
    const HEAPS: libc::c_int = 4;
    // SAFETY: mallopt takes numbers, and may be called while the process has one thread. It refuses none that is positive.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, HEAPS) };
}

fn failed(step: &'static str) -> impl FnOnce(seccompiler::Error) -> JailError {
    move |error| JailError { step, source: Box::new(error) }
}

/// A thread's filter.
fn filter(thread: Thread) -> Result<BpfProgram, seccompiler::Error> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    let rows = CALLS.iter().filter(|Row(_, threads, _)| thread == Thread::Setup || threads.contains(&thread));
    for Row(call, _, when) in rows {
        // A call without rules is allowed whatever its arguments are; the table's test sees to it that no other row
        // narrows such a call.
        rules.entry(*call).or_default().extend(when.rules()?);
    }
    compile(rules, SeccompAction::Trap, SeccompAction::Allow)
}

/// `clone3` hides its flags from a filter. Without it, C libraries fall back on `clone`, whose flags can be looked at.
fn without_clone3() -> Result<BpfProgram, seccompiler::Error> {
    let rules = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    compile(rules, SeccompAction::Allow, SeccompAction::Errno(libc::ENOSYS.unsigned_abs()))
}

fn compile(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    matching: SeccompAction,
) -> Result<BpfProgram, seccompiler::Error> {
    Ok(SeccompFilter::new(rules, otherwise, matching, TargetArch::x86_64)?.try_into()?)
}

impl When {
    /// The rules of which one has to match; none if the call is allowed in any case.
    fn rules(self) -> Result<Vec<SeccompRule>, seccompiler::Error> {
        let rule = |argument, operator, value: u32| {
            let condition =
                SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, u64::from(value))?;
            Ok::<_, seccompiler::Error>(SeccompRule::new(vec![condition])?)
        };
        match self {
            Self::Always => Ok(Vec::new()),
            Self::OneOf(argument, values) => {
                values.iter().map(|value| rule(argument, SeccompCmpOp::Eq, *value)).collect()
            }
            Self::Clear(argument, bits) => {
                Ok(vec![rule(argument, SeccompCmpOp::MaskedEq(u64::from(bits)), 0)?])
            }
            Self::Set(argument, bits) => {
                Ok(vec![rule(argument, SeccompCmpOp::MaskedEq(u64::from(bits)), bits)?])
            }
        }
    }
}
