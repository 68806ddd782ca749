//! The user id that a machine runs as: one that no other machine of the node has.

use std::io;
use std::ops::Range;
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::config::Config;
use crate::node_lock;
use crate::state::{State, StateDir};
use crate::sync::blocking;

/// Time that other shims have to take theirs.
const PATIENCE: Duration = Duration::from_secs(20);

/// Takes an id for the machine of this pod and writes it into the pod's state. It is taken for as long as that file is
/// there: also when the shim is gone, until what is left of the pod is removed.
///
/// # Errors
/// When the state cannot be written, others' cannot be read, or all ids are taken.
pub(super) async fn take(config: &Config, directory: &StateDir, state: &mut State) -> io::Result<u32> {
    let (config, directory, mut taking) = (config.clone(), directory.clone(), state.clone());
    *state = blocking(move || {
        take_now(&config, &directory, &mut taking)?;
        Ok::<_, io::Error>(taking)
    })
    .await?;
    state.uid.ok_or_else(|| io::ErrorKind::NotFound.into())
}

fn take_now(config: &Config, directory: &StateDir, state: &mut State) -> io::Result<()> {
    let _lock = node_lock::acquire(&config.storage.directory, "uid", PATIENCE)?;
    let taken = directory.others()?.iter().filter_map(|(_, other)| other.uid).collect::<Vec<_>>();
    // Overflow is ruled out by the configuration's check.
    let ids = config.vmm.uid_base..config.vmm.uid_base.saturating_add(config.vmm.uid_count);
    let uid = choose(&state.sandbox_id, ids, &taken).ok_or_else(|| {
        io::Error::other("every user id is taken by another pod (uid_count in [vmm] of ravelin.toml)")
    })?;
    state.uid = Some(uid);
    directory.save(state)
}

/// The first free id from the one on that the pod's own id leads to, so that an id is not used again soon.
fn choose(sandbox_id: &str, ids: Range<u32>, taken: &[u32]) -> Option<u32> {
    let digest = Sha256::digest(sandbox_id.as_bytes());
    let number = digest.iter().take(4).fold(0_u32, |number, byte| (number << 8) | u32::from(*byte));
    let count = ids.end.checked_sub(ids.start).filter(|count| *count > 0)?;
    let first = ids.start + number % count;
    (first..ids.end).chain(ids.start..first).find(|uid| !taken.contains(uid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_pods_have_the_same_id_and_a_removed_pods_is_free_again() {
        let root = tempfile::tempdir().unwrap();
        let storage = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.storage.directory = storage.path().to_owned();
        (config.vmm.uid_base, config.vmm.uid_count) = (5000, 3);
        let take = |id: &str| {
            let mut state = State { sandbox_id: id.to_owned(), ..State::default() };
            take_now(&config, &StateDir::new(root.path(), id), &mut state).map(|()| state.uid.unwrap())
        };
        let mut all: Vec<_> = ["a", "b", "c"].map(|id| take(id).unwrap()).to_vec();
        all.sort_unstable();
        assert_eq!(all, [5000, 5001, 5002]);
        assert!(take("d").unwrap_err().to_string().contains("uid_count"));
        // A state that says nothing is no obstacle.
        std::fs::create_dir(root.path().join("empty")).unwrap();
        StateDir::new(root.path(), "b").remove().unwrap();
        assert!(all.contains(&take("d").unwrap()));
        // The same pod, tried again, does not stand in its own way.
        take("d").unwrap();
    }
}
