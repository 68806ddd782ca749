//! Reads a small tree or file of the host's into the entries of a push.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;

use ravelin_policy::Roots;
use ravelin_proto::agent::volume_entry::Content;
use ravelin_proto::agent::{Empty, VolumeEntry};
use rustix::fs::{Dir, FileType, Mode, OFlags, Stat, fstat, openat, readlinkat};

use super::{VolumeError, host};

/// Most content of one volume, in bytes.
pub(super) const MAX_BYTES: usize = 3 << 20;
const MAX_ENTRIES: usize = 4096;
const MAX_DEPTH: usize = 16;
/// The link through which the kubelet swaps a volume's content.
const DATA: &str = "..data";
/// Times a volume is read again because it changed meanwhile.
const ATTEMPTS: u32 = 5;

/// A volume's content.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Tree {
    pub single_file: bool,
    pub entries: Vec<VolumeEntry>,
}

/// Reads the volume at `path`. Blocks.
pub(super) fn read(path: &str, roots: &Roots) -> Result<Tree, VolumeError> {
    let mut attempt = 1;
    loop {
        match read_once(path, roots) {
            // Something went while it was read: the kubelet has just swapped the content.
            Err(VolumeError::Read { source, .. })
                if source.kind() == io::ErrorKind::NotFound && attempt < ATTEMPTS => {}
            Ok(None) if attempt < ATTEMPTS => {}
            Ok(None) => {
                return Err(VolumeError::Content {
                    path: path.to_owned(),
                    reason: "changes all the time".to_owned(),
                });
            }
            Ok(Some(content)) => return Ok(content),
            Err(error) => return Err(error),
        }
        attempt += 1;
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

/// `None` if the content was swapped while it was read.
fn read_once(path: &str, roots: &Roots) -> Result<Option<Tree>, VolumeError> {
    let failed = |source| VolumeError::Read { path: path.to_owned(), source };
    let root = host::open(path, roots, OFlags::RDONLY).map_err(failed)?;
    let stat = fstat(&root).map_err(|errno| failed(errno.into()))?;
    let mut reader = Reader { path, bytes: 0, entries: Vec::new() };
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => {
            reader.file(String::new(), root, &stat)?;
            Ok(Some(Tree { single_file: true, entries: reader.entries }))
        }
        FileType::Directory => {
            let data = reader.link(&root, DATA)?;
            reader.push(String::new(), &stat, Content::Directory(Empty {}))?;
            reader.directory("", &root, 0, data.as_deref())?;
            let same = reader.link(&root, DATA)? == data;
            Ok(same.then_some(Tree { single_file: false, entries: reader.entries }))
        }
        _ => Err(reader.wrong("is neither a directory nor a file")),
    }
}

struct Reader<'a> {
    path: &'a str,
    bytes: usize,
    entries: Vec<VolumeEntry>,
}

impl Reader<'_> {
    fn wrong(&self, reason: impl Into<String>) -> VolumeError {
        VolumeError::Content { path: self.path.to_owned(), reason: reason.into() }
    }

    fn failed(&self) -> impl Fn(io::Error) -> VolumeError + use<> {
        let path = self.path.to_owned();
        move |source| VolumeError::Read { path: path.clone(), source }
    }

    /// Where a link in a directory leads, if there is one.
    fn link(&self, directory: &File, name: &str) -> Result<Option<String>, VolumeError> {
        match readlinkat(directory, name, Vec::new()) {
            Ok(target) => match target.into_string() {
                Ok(target) => Ok(Some(target)),
                Err(_) => Err(self.wrong(format!("has a link {name:?} whose target is not UTF-8"))),
            },
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::INVAL) => Ok(None),
            Err(errno) => Err(self.failed()(errno.into())),
        }
    }

    fn push(&mut self, path: String, stat: &Stat, content: Content) -> Result<(), VolumeError> {
        if self.entries.len() >= MAX_ENTRIES {
            return Err(self.wrong(format!("has more than {MAX_ENTRIES} files")));
        }
        let (mode, uid, gid) = (host::permissions(stat), stat.st_uid, stat.st_gid);
        self.entries.push(VolumeEntry { path, mode, uid, gid, content: Some(content) });
        Ok(())
    }

    /// Reads what is in a directory, parents before their children. `data` is where the `..data` of the volume's own
    /// directory leads: of the directories that begin with two dots only that one is current.
    fn directory(
        &mut self,
        prefix: &str,
        directory: &File,
        depth: usize,
        data: Option<&str>,
    ) -> Result<(), VolumeError> {
        if depth > MAX_DEPTH {
            return Err(self.wrong(format!("is more than {MAX_DEPTH} directories deep")));
        }
        let failed = self.failed();
        let mut names = Vec::new();
        for entry in Dir::read_from(directory).map_err(|errno| failed(errno.into()))? {
            let entry = entry.map_err(|errno| failed(errno.into()))?;
            let name = entry
                .file_name()
                .to_str()
                .map_err(|_| self.wrong("has a name that is not UTF-8"))?
                .to_owned();
            let stale =
                data.is_some() && name.starts_with("..") && name != DATA && Some(name.as_str()) != data;
            if !matches!(name.as_str(), "." | "..") && !stale {
                names.push(name);
            }
        }
        // Always in the same order, so that the same content is the same push.
        names.sort();
        for name in names {
            self.entry(prefix, directory, &name, depth)?;
        }
        Ok(())
    }

    fn entry(&mut self, prefix: &str, directory: &File, name: &str, depth: usize) -> Result<(), VolumeError> {
        let failed = self.failed();
        let path = format!("{prefix}{name}");
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let opened = match openat(directory.as_fd(), name, flags, Mode::empty()) {
            Ok(opened) => File::from(opened),
            Err(rustix::io::Errno::LOOP) => {
                let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
                let stat =
                    rustix::fs::statat(directory, name, flags).map_err(|errno| failed(errno.into()))?;
                let target =
                    self.link(directory, name)?.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
                if target.starts_with('/') {
                    return Err(self.wrong(format!("has a link {path:?} that leads out of it")));
                }
                return self.push(path, &stat, Content::Symlink(target));
            }
            // What a socket, or a device without a driver, answers.
            Err(rustix::io::Errno::NXIO | rustix::io::Errno::NODEV) => {
                return Err(
                    self.wrong(format!("holds {path:?}, which is neither a directory, a file nor a link"))
                );
            }
            Err(errno) => return Err(failed(errno.into())),
        };
        let stat = fstat(&opened).map_err(|errno| failed(errno.into()))?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => self.file(path, opened, &stat),
            FileType::Directory => {
                let prefix = format!("{path}/");
                self.push(path, &stat, Content::Directory(Empty {}))?;
                self.directory(&prefix, &opened, depth + 1, None)
            }
            _ => Err(self.wrong(format!("holds {path:?}, which is neither a directory, a file nor a link"))),
        }
    }

    fn file(&mut self, path: String, file: File, stat: &Stat) -> Result<(), VolumeError> {
        let left = MAX_BYTES.saturating_sub(self.bytes);
        let mut content = Vec::new();
        let limit = u64::try_from(left).unwrap_or(u64::MAX).saturating_add(1);
        file.take(limit).read_to_end(&mut content).map_err(self.failed())?;
        if content.len() > left {
            return Err(self.wrong(format!("holds more than {} MiB", MAX_BYTES >> 20)));
        }
        self.bytes += content.len();
        self.push(path, stat, Content::File(content.into()))
    }
}
