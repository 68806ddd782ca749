//! `ravelin-vmm --uid UID --gid GID [--netns PATH]`: jails itself, then runs one machine for the shim that started it and
//! left the control socket at descriptor 3.

use std::os::fd::{FromRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use ravelin_vmm::control::{CONTROL_FD, ExitReason};
use ravelin_vmm::jail::{self, Identity};
use ravelin_vmm::log::{describe, do_not_wait_for_the_log, log};
use ravelin_vmm::server::{self, Origin};

const USAGE: &str = "Usage: ravelin-vmm --uid UID --gid GID [--netns PATH] | --version\n\
    Runs one virtual machine, steered through the socket at descriptor 3. Started by containerd-shim-ravelin-v2.";

fn main() -> ExitCode {
    let started = Instant::now();
    let (identity, netns) = match parse(std::env::args().skip(1)) {
        Ok(Invocation::Run(identity, netns)) => (identity, netns),
        Ok(Invocation::Version) => {
            println!("ravelin-vmm {}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        Ok(Invocation::Help) => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Err(text) => return fail(&format!("{text}\n{USAGE}")),
    };
    if !jail::is_open(&CONTROL_FD) {
        return fail("There is no control socket at descriptor 3");
    }
    // A log that nobody reads must not hold the machine up.
    do_not_wait_for_the_log();
    let kept = match jail::enter(identity, netns.as_deref()) {
        Ok(kept) => kept,
        Err(error) => return fail(&describe(&error)),
    };
    // SAFETY: the descriptor is open (checked above), and nothing else in this process uses it.
    let control = unsafe { OwnedFd::from_raw_fd(CONTROL_FD) };
    let reason = server::serve(control, Origin { started, statm: kept.statm });
    // The devices' threads are still running; they end here, all at once.
    std::process::exit(i32::from(reason.code()))
}

fn fail(text: &str) -> ExitCode {
    log(text);
    ExitCode::from(ExitReason::Error.code())
}

#[derive(Debug, PartialEq, Eq)]
enum Invocation {
    Run(Identity, Option<PathBuf>),
    Version,
    Help,
}

fn parse(arguments: impl Iterator<Item = String>) -> Result<Invocation, String> {
    let (mut uid, mut gid, mut netns) = (None, None, None);
    let mut arguments = arguments;
    while let Some(argument) = arguments.next() {
        let target = match argument.as_str() {
            "--version" => return Ok(Invocation::Version),
            "--help" => return Ok(Invocation::Help),
            "--uid" => &mut uid,
            "--gid" => &mut gid,
            "--netns" => {
                netns = Some(arguments.next().ok_or("--netns needs a path")?.into());
                continue;
            }
            other => return Err(format!("Unknown argument {other:?}")),
        };
        let value = arguments.next().ok_or_else(|| format!("{argument} needs a number"))?;
        match value.parse::<u32>() {
            Ok(0) | Err(_) | Ok(u32::MAX) => {
                return Err(format!("{argument} must be a number from 1 to {}, not {value:?}", u32::MAX - 1));
            }
            Ok(number) => *target = Some(number),
        }
    }
    match (uid, gid) {
        (Some(uid), Some(gid)) => Ok(Invocation::Run(Identity { uid, gid }, netns)),
        _ => Err("--uid and --gid are both needed".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Invocation, String> {
        parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn an_unprivileged_identity_is_required() {
        let identity = Identity { uid: 5, gid: 6 };
        assert_eq!(parsed("--uid 5 --gid 6"), Ok(Invocation::Run(identity, None)));
        let netns = Some("/run/netns/a".into());
        assert_eq!(parsed("--uid 5 --netns /run/netns/a --gid 6"), Ok(Invocation::Run(identity, netns)));
        let wrong = ["", "--uid 5", "--gid 5", "--uid 0 --gid 6", "--uid 5 --gid x", "--uid", "--no-jail"];
        for line in wrong.into_iter().chain(["--uid 5 --gid 6 --netns"]) {
            assert!(parsed(line).is_err(), "{line}");
        }
        assert_eq!(parsed("--version"), Ok(Invocation::Version));
    }
}
