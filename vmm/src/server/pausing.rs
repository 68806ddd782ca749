//! The order of a pause: first all processors, then all devices; then whoever asked is told.

use std::time::{Duration, Instant};

/// How long a machine may take to come to rest.
const PAUSE_TIME: Duration = Duration::from_secs(10);

/// How far a pause has come.
#[derive(Debug, Default)]
pub(super) struct Pausing {
    /// Tells the devices' answers of this pause from those of one before.
    count: u64,
    step: Step,
    /// The requests to be answered.
    asked: Vec<u64>,
    deadline: Option<Instant>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Step {
    #[default]
    Running,
    Processors,
    Devices {
        left: usize,
    },
    Paused,
}

/// What is to be done for a pause.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Nothing yet.
    Wait,
    /// Ask the processors to stand still.
    PauseProcessors,
    /// Ask the devices to stand still, in the pause of this number.
    PauseDevices(u64),
    /// Answer these requests.
    Answer(Decided),
    /// Let the machine go on, then answer these requests.
    Resume(Decided),
}

/// Requests to pause that are decided.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Decided {
    pub ids: Vec<u64>,
    pub result: Result<(), &'static str>,
}

impl Pausing {
    /// Request `id` asks for a pause.
    pub fn pause(&mut self, id: u64) -> Next {
        self.asked.push(id);
        match self.step {
            Step::Running => {
                self.count += 1;
                self.step = Step::Processors;
                self.deadline = Some(Instant::now() + PAUSE_TIME);
                Next::PauseProcessors
            }
            Step::Processors | Step::Devices { .. } => Next::Wait,
            Step::Paused => Next::Answer(self.decide(Ok(()))),
        }
    }

    /// The machine is to go on. Whoever still waits for a pause hears that there is none.
    pub fn resume(&mut self) -> Next {
        self.give_up("The machine was resumed before it stood still")
    }

    /// All processors of a machine with `threads` of devices stand still.
    pub fn processors_rest(&mut self, threads: usize) -> Next {
        if self.step != Step::Processors {
            return Next::Wait;
        }
        self.step = Step::Devices { left: threads };
        Next::PauseDevices(self.count)
    }

    /// One of the devices' threads stands still in pause `count`.
    pub fn devices_rest(&mut self, count: u64) -> Next {
        match self.step {
            Step::Devices { left } if count == self.count && left > 1 => {
                self.step = Step::Devices { left: left - 1 };
                Next::Wait
            }
            Step::Devices { .. } if count == self.count => {
                self.step = Step::Paused;
                Next::Answer(self.decide(Ok(())))
            }
            _ => Next::Wait,
        }
    }

    /// It is `now`.
    pub fn check(&mut self, now: Instant) -> Next {
        if self.deadline.is_none_or(|deadline| now < deadline) {
            return Next::Wait;
        }
        self.give_up(match self.step {
            Step::Processors => "Some virtual CPUs did not stop in time",
            _ => "Some devices did not stop in time",
        })
    }

    /// Milliseconds until [`Pausing::check`] is to be called.
    pub fn timeout_ms(&self) -> Option<u32> {
        let left = self.deadline?.saturating_duration_since(Instant::now());
        Some(u32::try_from(left.as_millis()).unwrap_or(u32::MAX).saturating_add(1))
    }

    fn give_up(&mut self, text: &'static str) -> Next {
        self.step = Step::Running;
        Next::Resume(self.decide(Err(text)))
    }

    fn decide(&mut self, result: Result<(), &'static str>) -> Decided {
        self.deadline = None;
        Decided { ids: std::mem::take(&mut self.asked), result }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn done(ids: &[u64]) -> Decided {
        Decided { ids: ids.into(), result: Ok(()) }
    }

    #[test]
    fn processors_come_first_then_devices_then_the_answer() {
        let mut pausing = Pausing::default();
        assert_eq!(pausing.pause(7), Next::PauseProcessors);
        assert_eq!(pausing.pause(8), Next::Wait);
        assert_eq!(pausing.devices_rest(1), Next::Wait, "nobody has asked them");
        assert_eq!(pausing.processors_rest(2), Next::PauseDevices(1));
        assert_eq!(pausing.processors_rest(2), Next::Wait);
        assert_eq!(pausing.devices_rest(1), Next::Wait);
        assert_eq!(pausing.devices_rest(1), Next::Answer(done(&[7, 8])));
        assert_eq!(pausing.pause(9), Next::Answer(done(&[9])));
        assert_eq!(pausing.timeout_ms(), None);
        let Next::Resume(decided) = pausing.resume() else { panic!() };
        assert!(decided.ids.is_empty());
    }

    #[test]
    fn answers_of_a_pause_that_was_given_up_do_not_count_for_the_next() {
        let mut pausing = Pausing::default();
        pausing.pause(1);
        assert_eq!(pausing.processors_rest(1), Next::PauseDevices(1));
        let Next::Resume(decided) = pausing.resume() else { panic!() };
        assert_eq!((decided.ids, decided.result.is_err()), (vec![1], true));
        assert_eq!(pausing.processors_rest(1), Next::Wait);
        pausing.pause(2);
        assert_eq!(pausing.processors_rest(1), Next::PauseDevices(2));
        assert_eq!(pausing.devices_rest(1), Next::Wait);
        assert_eq!(pausing.devices_rest(2), Next::Answer(done(&[2])));
    }

    #[test]
    fn a_machine_that_does_not_come_to_rest_goes_on_and_says_what_did_not_stop() {
        let late = Instant::now() + 2 * PAUSE_TIME;
        let mut pausing = Pausing::default();
        assert_eq!(pausing.check(late), Next::Wait);
        pausing.pause(1);
        assert_eq!(pausing.check(Instant::now()), Next::Wait);
        let Next::Resume(decided) = pausing.check(late) else { panic!() };
        assert!(decided.result.is_err_and(|text| text.contains("virtual CPUs")));
        pausing.pause(2);
        pausing.processors_rest(3);
        let Next::Resume(decided) = pausing.check(late) else { panic!() };
        assert!(decided.result.is_err_and(|text| text.contains("devices")));
        assert_eq!(pausing.check(late), Next::Wait);
    }
}
