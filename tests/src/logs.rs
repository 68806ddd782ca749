//! Container logs in CRI's format, one line each: `TIME STREAM TAG TEXT`, where the tag `P` says that the line goes on.

use std::path::Path;

/// A container's output so far, the streams apart.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Logs {
    /// Standard output, verbatim.
    pub stdout: Vec<u8>,
    /// Standard error, verbatim.
    pub stderr: Vec<u8>,
}

impl Logs {
    /// Reads a log file; one that does not exist yet is empty.
    #[track_caller]
    pub fn read(path: &Path) -> Self {
        match std::fs::read(path) {
            Ok(bytes) => Self::parse(&bytes),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Self::default(),
            Err(error) => panic!("cannot read {}: {error}", path.display()),
        }
    }

    /// Parses a log; a last line that is not complete yet is left out.
    #[track_caller]
    pub fn parse(bytes: &[u8]) -> Self {
        let mut logs = Self::default();
        for line in bytes.split_inclusive(|&byte| byte == b'\n').filter(|line| line.ends_with(b"\n")) {
            let mut fields = line.splitn(4, |&byte| byte == b' ');
            let (_, Some(stream), Some(tag), Some(text)) =
                (fields.next(), fields.next(), fields.next(), fields.next())
            else {
                panic!("not a line of a CRI log: {:?}", String::from_utf8_lossy(line));
            };
            let to = if stream == b"stdout" { &mut logs.stdout } else { &mut logs.stderr };
            to.extend_from_slice(if tag.starts_with(b"P") {
                text.strip_suffix(b"\n").unwrap_or(text)
            } else {
                text
            });
        }
        logs
    }

    /// Standard output as text.
    #[must_use]
    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error as text.
    #[must_use]
    pub fn err(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_kept_apart_and_partial_lines_joined() {
        let logs = Logs::parse(b"t stdout P one \nt stderr F bad\nt stdout F two\nt stdout F unfini");
        assert_eq!((logs.out().as_str(), logs.err().as_str()), ("one two\n", "bad\n"));
    }
}
