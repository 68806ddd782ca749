//! Landlock: a second wall behind the empty root and the seccomp filters. Everything that the node's kernel can deny is
//! denied, and nothing is allowed: no path, no TCP port, no abstract socket, no signal to a process outside.

use landlock::{ABI, Access, AccessFs, AccessNet, Ruleset, RulesetAttr, RulesetError, Scope};

use super::JailError;

/// The newest of Landlock's interfaces that the rights are taken from; an older kernel denies what it knows.
const NEWEST: ABI = ABI::V6;

/// Denies everything, for this thread and those that it makes. A kernel without Landlock denies nothing.
pub(super) fn restrict() -> Result<(), JailError> {
    deny_everything().map_err(|error| JailError { step: "restrict it by Landlock", source: Box::new(error) })
}

fn deny_everything() -> Result<(), RulesetError> {
    Ruleset::default()
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?
        .restrict_self()?;
    Ok(())
}
