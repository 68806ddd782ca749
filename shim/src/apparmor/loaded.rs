//! What the node's kernel gives back of the policies that it was given.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{MAX_BYTES, ProfileError};

/// Times a profile is looked for again because it was replaced meanwhile.
const ATTEMPTS: u32 = 5;
/// The directory of the profiles that lie in one.
const INNER: &str = "profiles";

/// The policies that `name`, the profiles that it lies in and those that lie in it were loaded with, in the order in which they
/// were: `apparmor_parser` loads most profiles one by one. None if the kernel does not show the profile or has not kept all of
/// them. In `profiles` every profile is a directory with its name, those in it, and its policy.
pub(super) fn read(profiles: &Path, name: &str) -> Result<Vec<Vec<u8>>, ProfileError> {
    let mut attempt = 1;
    loop {
        match read_once(profiles, name) {
            Err((_, source)) if source.kind() == ErrorKind::NotFound && attempt < ATTEMPTS => {}
            // The link to a policy that was not kept leads nowhere.
            Err((_, source)) if source.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err((_, source)) if source.kind() == ErrorKind::FileTooLarge => {
                return Err(ProfileError::TooLarge { name: name.to_owned() });
            }
            Err((path, source)) => return Err(ProfileError::Read { name: name.to_owned(), path, source }),
            Ok(policies) => return Ok(policies),
        }
        attempt += 1;
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

type Failure = (PathBuf, io::Error);

fn read_once(profiles: &Path, name: &str) -> Result<Vec<Vec<u8>>, Failure> {
    let mut directory = profiles.to_owned();
    let mut family = Vec::new();
    // A profile's name holds those of the profiles that it lies in.
    for (depth, part) in name.split("//").enumerate() {
        if depth > 0 {
            directory.push(INNER);
        }
        match child(&directory, part)? {
            Some(found) => directory = found,
            None => return Ok(Vec::new()),
        }
        family.push(directory.clone());
    }
    let mut unseen = vec![directory];
    while let Some(outer) = unseen.pop() {
        for inner in entries(&outer.join(INNER))? {
            let path = inner.join("name");
            // The kernel's own, for what a complaining profile's programs run.
            if content(&path, MAX_BYTES).map_err(|source| (path.clone(), source))?.starts_with(b"null-") {
                continue;
            }
            family.push(inner.clone());
            unseen.push(inner);
        }
    }
    // One policy may hold several of them.
    let mut policies = BTreeMap::new();
    let mut left = MAX_BYTES;
    for profile in family {
        let path = profile.join("raw_data");
        let failed = |source| (path.clone(), source);
        // The way to it holds links of the kernel's that only the kernel can follow.
        let file = fs::metadata(&path).map_err(failed)?;
        let link = fs::read_link(&path).unwrap_or_default();
        let revision = profile.join(link).with_file_name("revision");
        let revision = fs::read_to_string(revision).unwrap_or_default();
        let key = (revision.trim().parse::<u64>().unwrap_or_default(), file.dev(), file.ino());
        if policies.contains_key(&key) {
            continue;
        }
        let policy = content(&path, left).map_err(failed)?;
        if policy.is_empty() {
            return Err(failed(io::Error::other("it is empty")));
        }
        left -= policy.len() as u64;
        policies.insert(key, policy);
    }
    Ok(policies.into_values().collect())
}

/// What is in a directory of the kernel's; nothing if it is not there.
fn entries(directory: &Path) -> Result<Vec<PathBuf>, Failure> {
    let failed = |source| (directory.to_owned(), source);
    match fs::read_dir(directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        entries => {
            let paths = entries.map_err(failed)?.map(|entry| entry.map(|entry| entry.path()));
            paths.collect::<io::Result<_>>().map_err(failed)
        }
    }
}

/// The directory of the profile with this last part of its name. Directories have names of the kernel's own making.
fn child(directory: &Path, name: &str) -> Result<Option<PathBuf>, Failure> {
    for path in entries(directory)? {
        match content(&path.join("name"), MAX_BYTES) {
            Ok(line) if line.strip_suffix(b"\n").unwrap_or(&line) == name.as_bytes() => {
                return Ok(Some(path));
            }
            Ok(_) => {}
            // Another one that has just gone.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err((path.join("name"), error)),
        }
    }
    Ok(None)
}

/// What a file holds, if that is no more than `limit` bytes.
pub(super) fn content(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    File::open(path)?.take(limit + 1).read_to_end(&mut content)?;
    if content.len() as u64 > limit { Err(ErrorKind::FileTooLarge.into()) } else { Ok(content) }
}
