//! The guest's wall clock follows the host's.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, SystemTime};

use rustix::io::Errno;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::io::unix::AsyncFd;

use super::supervisor::Supervisor;
use crate::agent::{Agent, AgentError};
use crate::error::chain;

/// How often the guest is told the time while nobody sets the host's clock: its own drifts by some ten parts in a million.
const PERIOD: Duration = Duration::from_secs(60);

fn since_1970() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

/// Tells the guest the time every minute, and at once when somebody sets the host's clock, until the machine ends.
///
/// That is the guest's heartbeat as well: the supervisor hears when no answer comes.
pub(super) async fn follow(agent: Agent, supervisor: Supervisor) {
    let machine = agent.machine().clone();
    tokio::select! {
        _ = machine.wait() => {}
        followed = tell(&agent, &supervisor) => {
            if let Err(error) = followed {
                tracing::warn!("the guest's clock does not follow the host's any more: {error}");
            }
        }
    }
}

async fn tell(agent: &Agent, supervisor: &Supervisor) -> io::Result<()> {
    let timer = timerfd_create(TimerfdClockId::Realtime, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
    // SAFETY: an OwnedFd stays open, and the same, as long as the AsyncFd owns it.
    let timer = unsafe { AsyncFd::register(timer) }?;
    loop {
        match set(timer.get_ref()) {
            Ok(()) => timer.readable().await?.clear_ready(),
            // Somebody set the clock since the guest was told.
            Err(Errno::CANCELED) => {}
            Err(error) => return Err(error.into()),
        }
        // Takes the news that the timer has: that its time has come, or (as an error) that the clock was set.
        let _ = rustix::io::read(timer.get_ref(), &mut [0_u8; 8]);
        beat(agent, supervisor).await;
    }
}

/// One beat of the heart.
async fn beat(agent: &Agent, supervisor: &Supervisor) {
    match agent.tell_time(agent.deadline()).await {
        Ok(()) => {}
        Err(AgentError::Timeout { .. }) => supervisor.missed(agent),
        Err(error) => tracing::warn!("{}", chain(&error)),
    }
}

/// Sets the timer one period ahead on the wall clock. It becomes readable then, or when the clock is set
/// (`TFD_TIMER_CANCEL_ON_SET`, timerfd_create(2)).
fn set(timer: &OwnedFd) -> Result<(), Errno> {
    let at = since_1970() + PERIOD;
    let at =
        Timespec { tv_sec: at.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: at.subsec_nanos().into() };
    let once = Itimerspec { it_interval: Timespec::default(), it_value: at };
    timerfd_settime(timer, TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET, &once).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::testing::silent_pod;

    #[tokio::test(start_paused = true)]
    async fn the_supervisor_hears_of_a_beat_that_is_missed() {
        let pod = silent_pod().await;
        assert!(pod.supervisor.expects_answers());
        beat(&pod.agent, &pod.supervisor).await;
        assert!(!pod.supervisor.expects_answers());
    }
}
