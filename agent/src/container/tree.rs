//! A container's file tree as it will be: its root file system and, on top, its mounts in their order.
//!
//! Images and volumes are full of links, and their owners choose where they lead. A path is therefore walked one component
//! at a time with a descriptor in hand, links are followed as if the container's root were the only root there is, and each
//! mount so far counts: what is looked up below its destination is looked up in its source. Nothing outside is ever
//! reached, whatever other containers do to a shared volume meanwhile.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{FileType, Mode, OFlags, fstat, mkdirat, mknodat, openat, readlinkat};
use rustix::io::Errno;

/// Links that one path may lead through, as in the kernel.
const MAX_LINKS: u32 = 40;
/// Most parts of a path, links worked in: no longer one can be named (`PATH_MAX`).
const MAX_PARTS: usize = 2048;

/// Why a path of a container cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TreeError {
    /// The kernel refused a step.
    #[error("{what} {path}: {}", std::io::Error::from(*.errno))]
    Step {
        /// What was attempted.
        what: &'static str,
        /// Where, as the container sees it.
        path: String,
        /// The kernel's reason.
        errno: Errno,
    },
    /// Something is there that is no directory.
    #[error("{0} is not a directory")]
    NotADirectory(String),
    /// A directory is there.
    #[error("{0} is a directory, and what is mounted there is a file")]
    IsADirectory(String),
    /// Nothing is there and nothing can be made there.
    #[error("{0} does not exist and cannot be made: it lies in a read-only mount")]
    ReadOnly(String),
    /// Links that lead in a circle.
    #[error("too many symbolic links")]
    Loop,
    /// A path that is too long, as links can make one.
    #[error("the path has more than {MAX_PARTS} parts")]
    TooLong,
}

/// What is made where nothing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A directory, and directories above it.
    Directory,
    /// An empty file, and directories above it.
    File,
}

/// What a mount brings along.
#[derive(Debug, Clone)]
pub enum Content {
    /// A directory that is there already; `readonly` if nothing can be made in it.
    Directory {
        /// It, opened.
        fd: Rc<OwnedFd>,
        /// The container sees it read-only.
        readonly: bool,
    },
    /// A file.
    File,
    /// A file system that comes to be with the mount. What is missing in it is made then.
    New,
}

/// A place that a path led to.
#[derive(Debug, Clone)]
enum Place {
    Directory { fd: Rc<OwnedFd>, readonly: bool },
    File,
    New,
    Missing,
}

impl From<Content> for Place {
    fn from(content: Content) -> Self {
        match content {
            Content::Directory { fd, readonly } => Self::Directory { fd, readonly },
            Content::File => Self::File,
            Content::New => Self::New,
        }
    }
}

/// Where a path led: the names from the root down, each with what it stands for. Empty: the root itself.
type Steps = Vec<(OsString, Place)>;

/// The tree.
#[derive(Debug)]
pub struct Tree {
    root: Place,
    mounts: Vec<(PathBuf, Place)>,
}

/// A path without links, and what was found there.
#[derive(Debug, PartialEq, Eq)]
pub struct Found {
    /// The path, from the container's root.
    pub path: PathBuf,
    /// Mode bits of a directory that was there before.
    pub mode: Option<u32>,
}

impl Tree {
    /// The tree of a mounted root file system.
    ///
    /// # Errors
    ///
    /// When it cannot be opened.
    pub fn new(rootfs: &Path) -> rustix::io::Result<Self> {
        Ok(Self { root: Place::from(open(rootfs, false)?), mounts: Vec::new() })
    }

    /// Notes that something is mounted at `path`, which [`Self::make`] gave.
    pub fn mount(&mut self, path: PathBuf, content: Content) {
        self.mounts.push((path, content.into()));
    }

    /// The path that `path` means in the container, links resolved; nothing is made.
    ///
    /// # Errors
    ///
    /// When the path leads through a file or in a circle.
    pub fn resolve(&self, path: &Path) -> Result<PathBuf, TreeError> {
        Ok(joined(&self.walk(path)?))
    }

    /// Resolves a path and makes what is missing of it. Directories get the mode 0755.
    ///
    /// # Errors
    ///
    /// When something of the wrong kind is there, or what is missing cannot be made.
    pub fn make(&self, path: &Path, kind: Kind) -> Result<Found, TreeError> {
        let steps = self.walk(path)?;
        let path = joined(&steps);
        let mut here = self.root.clone();
        let mut done = PathBuf::from("/");
        let last = steps.len();
        let mut made = false;
        for (at, (name, place)) in steps.into_iter().enumerate() {
            done.push(&name);
            here = match place {
                Place::Missing => {
                    made = true;
                    let file = kind == Kind::File && at + 1 == last;
                    create(&here, &name, &done, if file { Kind::File } else { Kind::Directory })?
                }
                there => there,
            };
        }
        let shown = || path.display().to_string();
        let mode = match (&here, kind) {
            (Place::Directory { .. }, Kind::File) => return Err(TreeError::IsADirectory(shown())),
            (Place::File, Kind::Directory) => return Err(TreeError::NotADirectory(shown())),
            (Place::Directory { fd, .. }, Kind::Directory) if !made => {
                fstat(fd).ok().map(|stat| stat.st_mode & 0o7777)
            }
            _ => None,
        };
        Ok(Found { path, mode })
    }

    /// Follows a path as far as it exists, and beyond by its letters.
    fn walk(&self, path: &Path) -> Result<Steps, TreeError> {
        let mut left: VecDeque<OsString> = parts(path);
        let mut steps = Steps::new();
        let mut links = 0;
        while let Some(part) = left.pop_front() {
            if steps.len() + left.len() >= MAX_PARTS {
                return Err(TreeError::TooLong);
            }
            if part == ".." {
                steps.pop();
                continue;
            }
            let path = joined(&steps).join(&part);
            if let Some((_, place)) = self.mounts.iter().rev().find(|(mounted, _)| *mounted == path) {
                steps.push((part, place.clone()));
                continue;
            }
            let here = steps.last().map_or(&self.root, |(_, place)| place);
            let place = match here {
                Place::File => return Err(TreeError::NotADirectory(joined(&steps).display().to_string())),
                Place::New => Place::New,
                Place::Missing => Place::Missing,
                Place::Directory { fd, readonly } => match look(fd, &part, *readonly, &path)? {
                    Looked::There(place) => place,
                    Looked::Link(target) => {
                        links += 1;
                        if links > MAX_LINKS {
                            return Err(TreeError::Loop);
                        }
                        if target.is_absolute() {
                            steps.clear();
                        }
                        for part in parts(&target).into_iter().rev() {
                            left.push_front(part);
                        }
                        continue;
                    }
                },
            };
            steps.push((part, place));
        }
        Ok(steps)
    }
}

/// Opens what a mount is made from.
///
/// # Errors
///
/// When it cannot be opened.
pub fn open(path: &Path, readonly: bool) -> rustix::io::Result<Content> {
    let fd = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    Ok(match FileType::from_raw_mode(fstat(&fd)?.st_mode) {
        FileType::Directory => Content::Directory { fd: Rc::new(fd), readonly },
        _ => Content::File,
    })
}

enum Looked {
    There(Place),
    Link(PathBuf),
}

/// Looks at one name in a directory.
fn look(directory: &OwnedFd, name: &OsStr, readonly: bool, path: &Path) -> Result<Looked, TreeError> {
    let failed = |what, errno| TreeError::Step { what, path: path.display().to_string(), errno };
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = match openat(directory, name, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(Looked::There(Place::Missing)),
        opened => opened.map_err(|errno| failed("open", errno))?,
    };
    let stat = fstat(&fd).map_err(|errno| failed("look at", errno))?;
    Ok(match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => Looked::There(Place::Directory { fd: Rc::new(fd), readonly }),
        FileType::Symlink => {
            let target = readlinkat(&fd, c"", Vec::new()).map_err(|errno| failed("read the link", errno))?;
            Looked::Link(PathBuf::from(OsString::from_vec(target.into_bytes())))
        }
        _ => Looked::There(Place::File),
    })
}

/// Makes one name in a directory.
fn create(here: &Place, name: &OsStr, path: &Path, kind: Kind) -> Result<Place, TreeError> {
    let shown = || path.display().to_string();
    let fd = match here {
        Place::Directory { readonly: true, .. } => return Err(TreeError::ReadOnly(shown())),
        Place::Directory { fd, .. } => fd,
        // Made with the file system.
        _ => return Ok(Place::New),
    };
    let failed = |errno| TreeError::Step { what: "make", path: shown(), errno };
    if kind == Kind::File {
        // Not opened: what another container puts there meanwhile may be a device.
        return match mknodat(fd, name, FileType::RegularFile, Mode::from_raw_mode(0o644), 0) {
            Ok(()) | Err(Errno::EXIST) => Ok(Place::File),
            Err(errno) => Err(failed(errno)),
        };
    }
    match mkdirat(fd, name, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(failed(errno)),
    }
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let made = openat(fd.as_fd(), name, flags, Mode::empty()).map_err(failed)?;
    Ok(Place::Directory { fd: Rc::new(made), readonly: false })
}

/// The parts of a path that mean something.
fn parts(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|part| match part {
            Component::Normal(part) => Some(part.to_owned()),
            Component::ParentDir => Some(OsString::from("..")),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
        })
        .collect()
}

fn joined(steps: &Steps) -> PathBuf {
    let mut path = PathBuf::from("/");
    path.extend(steps.iter().map(|(name, _)| name));
    path
}

#[cfg(test)]
#[path = "tree_tests.rs"]
mod tests;
