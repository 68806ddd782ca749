//! What can go wrong with a request, and how the host is told.

use std::io;

use tonic::Status;

/// Longest text, in bytes. It travels in a header, with three bytes for many a character, and the host takes no headers of more
/// than 16 KiB.
const MAX_TEXT: usize = 4 << 10;

/// Why a request failed. Each kind is one gRPC code; the text is a sentence for people.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// No such container, process, stream, extent or volume.
    #[error("{0}")]
    NotFound(String),
    /// The id is taken.
    #[error("{0}")]
    AlreadyExists(String),
    /// The object is in the wrong state for the call.
    #[error("{0}")]
    WrongState(String),
    /// The request itself is wrong.
    #[error("{0}")]
    Invalid(String),
    /// The guest's kernel refused.
    #[error("{attempt}: {source}")]
    Os {
        /// What was attempted, on what.
        attempt: String,
        /// The kernel's reason.
        source: io::Error,
    },
    /// Something else in the guest failed.
    #[error("{0}")]
    Failed(String),
}

/// The result of the agent's own functions.
pub type Result<T> = std::result::Result<T, AgentError>;

/// Says what was attempted when a system call fails.
pub trait Attempt<T> {
    /// Turns the failure into an [`AgentError::Os`] that begins with `attempt`'s text.
    ///
    /// # Errors
    ///
    /// When `self` is one.
    fn attempt(self, attempt: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<io::Error>> Attempt<T> for std::result::Result<T, E> {
    fn attempt(self, attempt: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| AgentError::Os { attempt: attempt(), source: source.into() })
    }
}

impl From<AgentError> for Status {
    fn from(error: AgentError) -> Self {
        let text = shortened(error.to_string());
        match error {
            AgentError::NotFound(_) => Self::not_found(text),
            AgentError::AlreadyExists(_) => Self::already_exists(text),
            AgentError::WrongState(_) => Self::failed_precondition(text),
            AgentError::Invalid(_) => Self::invalid_argument(text),
            AgentError::Os { .. } | AgentError::Failed(_) => Self::internal(text),
        }
    }
}

/// The text, without the end of a long one: it may hold a name as long as an argument can be.
#[must_use]
pub fn shortened(mut text: String) -> String {
    if text.len() > MAX_TEXT {
        text.truncate(text.floor_char_boundary(MAX_TEXT));
        text.push('…');
    }
    text
}

/// An error with all its causes, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        // Transparent wrappers repeat their source's text.
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_any_length_fits_into_the_headers_of_an_answer() {
        let status = Status::from(AgentError::Invalid("ä".repeat(100_000)));
        assert!(status.message().starts_with("ää") && status.message().ends_with("ä…"));
        let headers = status.into_http::<()>().into_parts().0.headers;
        let length: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum();
        assert!(length < 16 << 10, "{length} bytes");
    }
}
