//! Errors as containerd gets them.

use std::error::Error;
use std::fmt::Write;

use ttrpc::Code;

/// Longest error message sent to containerd, in bytes.
const MAX_MESSAGE: usize = 4096;

/// The answer to a call that failed: a code containerd acts on, and a sentence for people.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// No such task or process, or it has ended already.
    #[error("{0}: not found")]
    NotFound(String),
    /// The id is taken.
    #[error("{0}: already exists")]
    AlreadyExists(String),
    /// The task is in the wrong state for the call.
    #[error("{0}: failed precondition")]
    FailedPrecondition(String),
    /// The request itself is wrong.
    #[error("{0}: invalid argument")]
    InvalidArgument(String),
    /// The pod's policy does not allow it. The message stands alone, word for word.
    #[error("{0}")]
    Refused(String),
    /// Ravelin does not do this.
    #[error("{0}: not implemented")]
    NotImplemented(String),
    /// It was tried and failed.
    #[error("{0}")]
    Failed(String),
}

impl TaskError {
    /// A failure of one of our parts, with its causes.
    pub fn failed(error: impl Error) -> Self {
        Self::Failed(chain(&error))
    }

    fn code(&self) -> Code {
        match self {
            Self::NotFound(_) => Code::NOT_FOUND,
            Self::AlreadyExists(_) => Code::ALREADY_EXISTS,
            Self::FailedPrecondition(_) => Code::FAILED_PRECONDITION,
            Self::InvalidArgument(_) => Code::INVALID_ARGUMENT,
            Self::Refused(_) | Self::Failed(_) => Code::UNKNOWN,
            Self::NotImplemented(_) => Code::UNIMPLEMENTED,
        }
    }
}

impl From<TaskError> for ttrpc::Error {
    fn from(error: TaskError) -> Self {
        let code = error.code();
        Self::RpcStatus(ttrpc::get_status(code, bounded(&error.to_string(), MAX_MESSAGE)))
    }
}

/// An error and its causes as one line: `cannot do this: because of that: No such file or directory (os error 2)`.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        // Errors of other crates often repeat their cause.
        let words = error.to_string();
        if !text.ends_with(&words) {
            let _ = write!(text, ": {words}");
        }
        cause = error.source();
    }
    text
}

/// `text` without control characters and of at most `limit` bytes: for words that come from the guest.
#[must_use]
pub fn bounded(text: &str, limit: usize) -> String {
    let mut out = String::new();
    for character in text.chars().map(|c| if c.is_control() { ' ' } else { c }) {
        if out.len() + character.len_utf8() > limit {
            out.push('…');
            break;
        }
        out.push(character);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_names_every_cause_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot open x")]
        struct Outer(#[source] std::io::Error);
        let error = Outer(std::io::Error::from_raw_os_error(libc::ENOENT));
        assert_eq!(chain(&error), "cannot open x: No such file or directory (os error 2)");
    }

    #[test]
    fn words_of_the_guest_are_cut_and_cleaned() {
        assert_eq!(bounded("a\nb\u{1b}[31m", 100), "a b [31m");
        assert_eq!(bounded("ääää", 4), "ää…");
    }

    #[test]
    fn codes_reach_containerd() {
        let ttrpc::Error::RpcStatus(status) = TaskError::NotFound("process already finished".into()).into()
        else {
            panic!("no status")
        };
        assert_eq!(status.code(), Code::NOT_FOUND);
        assert_eq!(status.message, "process already finished: not found");
    }
}
