use std::time::Instant;

use super::*;
use crate::machine::testing;
use crate::sandbox::testing::silent_pod;
use crate::sandbox::{KILLED, LOST};
use crate::task::{Removal, signal};

const ASKED: &str = "it was asked to";

#[test]
fn what_was_asked_for_stays_the_reason_of_what_has_to_be_forced() {
    let supervisor = Supervisor::new("s");
    supervisor.order(Order { how: How::Stop, status: KILLED, why: ASKED });
    supervisor.order(Order { how: How::Ask, status: 0, why: ASKED });
    assert_eq!(supervisor.ordered(), Some(Order { how: How::Stop, status: KILLED, why: ASKED }));
    supervisor.cut("it is silent");
    assert_eq!(supervisor.ordered(), Some(Order { how: How::Cut, status: KILLED, why: ASKED }));
}

#[tokio::test]
async fn a_machine_that_does_not_answer_its_stop_is_killed() {
    let (machine, _control) = testing::machine();
    let supervisor = Supervisor::new("s");
    supervisor.order(Order { how: How::Ask, status: 0, why: ASKED });
    let started = Instant::now();
    assert_eq!(supervisor.oversee(&machine, || None).await, Exit::Signal(9));
    assert!(started.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn a_guest_with_volumes_is_asked_to_write_them_out_before_power_is_cut() {
    // The silent guest takes all the time that it is given.
    let mut without = Duration::ZERO;
    for volumes in [None, Some(Duration::from_secs(6))] {
        let pod = silent_pod().await;
        let guest = || Some(Guest { agent: pod.agent.clone(), volumes });
        let machine = pod.agent.machine().clone();
        let started = Instant::now();
        pod.supervisor.order(Order { how: How::Stop, status: KILLED, why: ASKED });
        assert_eq!(pod.supervisor.oversee(&machine, guest).await, Exit::Signal(9));
        match volumes {
            None => without = started.elapsed(),
            Some(patience) => assert!(started.elapsed() >= patience.max(without), "{:?}", started.elapsed()),
        }
    }
    assert!(without < Duration::from_secs(6), "{without:?}");
}

#[tokio::test]
async fn a_machine_that_hangs_up_and_lives_on_is_killed() {
    let (machine, control) = testing::machine();
    let supervisor = Supervisor::new("s");
    drop(control);
    let ended = tokio::time::timeout(Duration::from_secs(20), supervisor.oversee(&machine, || None)).await;
    assert_eq!(ended, Ok(Exit::Signal(9)));
    assert_eq!(supervisor.ordered().map(|order| order.status), Some(LOST));
}

#[tokio::test]
async fn an_unanswered_sigkill_ends_the_machine_and_another_signal_does_not() {
    let pod = silent_pod().await;
    let machine = pod.agent.machine().clone();
    let overseen = {
        let (supervisor, machine) = (pod.supervisor.clone(), machine.clone());
        tokio::spawn(async move { supervisor.oversee(&machine, || None).await })
    };
    // Whether the process is there is known without the guest.
    signal(&pod, "c", "", 0, false).await.unwrap();
    assert!(pod.supervisor.expects_answers());
    // As a process that stands still takes SIGTERM: it is sent, and nothing happens.
    signal(&pod, "c", "", 15, false).await.unwrap();
    assert!(!pod.supervisor.expects_answers());
    assert_eq!((pod.supervisor.ordered(), machine.exited()), (None, None));
    let started = Instant::now();
    signal(&pod, "c", "", 9, true).await.unwrap();
    assert_eq!(overseen.await.unwrap(), Exit::Signal(9));
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_guest_that_falls_silent_after_a_kill_loses_its_machine() {
    let pod = silent_pod().await;
    let never = std::future::pending::<()>();
    let started = Instant::now();
    pod.supervisor.see_to_the_end_of(&pod.agent, never).await;
    assert_eq!(pod.supervisor.ordered().map(|order| order.how), Some(How::Cut));
    assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_container_that_a_silent_guest_does_not_remove_costs_the_machine_once_it_is_pressed_for() {
    let pod = Arc::new(silent_pod().await);
    let patience = Duration::from_secs(15);
    let ordered = || pod.supervisor.ordered().map(|order| order.how);
    // Gone in time, or nobody presses, or its turn has not come: the machine is left alone.
    let (gone, unpressed, early) =
        (Arc::<Removal>::default(), Arc::<Removal>::default(), Arc::<Removal>::default());
    gone.begin(&pod);
    gone.press(&pod);
    gone.done();
    unpressed.begin(&pod);
    early.press(&pod);
    tokio::time::sleep(patience).await;
    assert_eq!(ordered(), None);
    early.begin(&pod);
    let mut orders = pod.supervisor.0.orders.subscribe();
    let cut = orders.wait_for(|order| order.is_some_and(|order| order.how == How::Cut));
    tokio::time::timeout(patience, cut).await.expect("the machine is cut").expect("the supervisor is there");
}

#[tokio::test]
async fn a_silent_guest_that_nobody_wants_to_end_is_left_alone() {
    let pod = silent_pod().await;
    pod.supervisor.set_frozen(true);
    pod.supervisor.missed(&pod.agent);
    assert!(!pod.supervisor.expects_answers());
    pod.supervisor.set_frozen(false);
    assert!(pod.supervisor.expects_answers());
    pod.supervisor.missed(&pod.agent);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!pod.supervisor.expects_answers());
    assert_eq!((pod.supervisor.ordered(), pod.agent.machine().exited()), (None, None));
}
