//! `ravelin-vmm --uid UID --gid GID --vcpus NUMBER --scratch-bytes NUMBER [--netns PATH]`: jails itself, then runs one machine for the shim that started it and
//! left the control socket at descriptor 3.

use std::os::fd::{FromRawFd, OwnedFd};
use std::process::ExitCode;
use std::time::Instant;

use ravelin_vmm::control::{CONTROL_FD, ExitReason};
use ravelin_vmm::jail::{self, Identity, Jail, Limits, MOST_OTHER_THREADS};
use ravelin_vmm::log::{describe, do_not_wait_for_the_log, log};
use ravelin_vmm::server::{self, Origin};

const USAGE: &str = "Usage: ravelin-vmm --uid UID --gid GID --vcpus NUMBER --scratch-bytes NUMBER [--netns PATH] | --version\n\
    Runs one virtual machine, steered through the socket at descriptor 3. Started by containerd-shim-ravelin-v2.";

fn main() -> ExitCode {
    let started = Instant::now();
    let jail = match parse(std::env::args().skip(1)) {
        Ok(Invocation::Run(jail)) => jail,
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
    end_on_panic();
    let kept = match jail::enter(&jail) {
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

/// A panic of any thread ends the process with a status that says so. The signal that Rust would end it by does nothing
/// to the first process of a process namespace.
fn end_on_panic() {
    std::panic::set_hook(Box::new(|panic| {
        log(&panic.to_string());
        std::process::exit(i32::from(ExitReason::Error.code()));
    }));
}

#[derive(Debug, PartialEq, Eq)]
enum Invocation {
    Run(Jail),
    Version,
    Help,
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Invocation, String> {
    let (mut uid, mut gid, mut vcpus, mut scratch_bytes, mut netns) = (None, None, None, None, None);
    while let Some(argument) = arguments.next() {
        let (target, most) = match argument.as_str() {
            "--version" => return Ok(Invocation::Version),
            "--help" => return Ok(Invocation::Help),
            // The last number means "no user" to the kernel.
            "--uid" => (&mut uid, u64::from(u32::MAX - 1)),
            "--gid" => (&mut gid, u64::from(u32::MAX - 1)),
            "--vcpus" => (&mut vcpus, u64::from(u8::MAX)),
            "--scratch-bytes" => (&mut scratch_bytes, i64::MAX.unsigned_abs()),
            "--netns" => {
                netns = Some(arguments.next().ok_or("--netns needs a path")?.into());
                continue;
            }
            other => return Err(format!("Unknown argument {other:?}")),
        };
        let value = arguments.next().ok_or_else(|| format!("{argument} needs a number"))?;
        match value.parse::<u64>() {
            Ok(number) if (1..=most).contains(&number) => *target = Some(number),
            _ => return Err(format!("{argument} must be a number from 1 to {most}, not {value:?}")),
        }
    }
    let needed = |number: Option<u64>, name| number.ok_or_else(|| format!("{name} is needed"));
    let id = |number, name| Ok::<_, String>(u32::try_from(needed(number, name)?).unwrap_or(u32::MAX));
    Ok(Invocation::Run(Jail {
        identity: Identity { uid: id(uid, "--uid")?, gid: id(gid, "--gid")? },
        netns,
        limits: Limits {
            file_bytes: needed(scratch_bytes, "--scratch-bytes")?,
            threads: needed(vcpus, "--vcpus")? + MOST_OTHER_THREADS,
        },
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Invocation, String> {
        parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn all_that_the_process_is_confined_by_is_required() {
        let jail = Jail {
            identity: Identity { uid: 5, gid: 6 },
            netns: None,
            limits: Limits { file_bytes: 8192, threads: 2 + MOST_OTHER_THREADS },
        };
        let rest = "--vcpus 2 --scratch-bytes 8192";
        let said = parsed(&format!("--uid 5 --netns /run/netns/a --gid 6 {rest}"));
        assert_eq!(said, Ok(Invocation::Run(Jail { netns: Some("/run/netns/a".into()), ..jail.clone() })));
        assert_eq!(parsed(&format!("--uid 5 --gid 6 {rest}")), Ok(Invocation::Run(jail)));
        for ids in
            ["", "--uid 5", "--gid 5", "--uid 0 --gid 6", "--uid 5 --gid x", "--uid 5 --gid 4294967295"]
        {
            assert!(parsed(&format!("{rest} {ids}")).is_err(), "{ids}");
        }
        for rest in [
            "",
            "--vcpus 1",
            "--scratch-bytes 1",
            "--vcpus 256 --scratch-bytes 1",
            "--vcpus 1 --scratch-bytes 0",
        ] {
            assert!(parsed(&format!("--uid 5 --gid 6 {rest}")).is_err(), "{rest}");
        }
        for wrong in ["--uid", "--no-jail", "--netns"] {
            assert!(parsed(&format!("--uid 5 --gid 6 {rest} {wrong}")).is_err(), "{wrong}");
        }
        assert_eq!(parsed("--version"), Ok(Invocation::Version));
    }
}
