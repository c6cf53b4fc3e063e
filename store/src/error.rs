//! Why a store refuses, in words an operator can act on.

use api::Violation;

#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    #[error("{0} does not exist")]
    NotFound(String),
    #[error("{0} exists already")]
    AlreadyExists(String),
    /// The object changed since it was read: read it again and decide anew.
    #[error("{object} changed since it was read: {detail}")]
    Conflict { object: String, detail: String },
    #[error("{object} is refused: {}", violations.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Invalid { object: String, violations: Vec<Violation> },
    /// This agent's role may not do that.
    #[error("not allowed: {0}")]
    Forbidden(String),
    /// The source cannot be reached now; the last known state stays readable.
    #[error("the store cannot be reached: {0}")]
    Unavailable(String),
    #[error("{object} cannot be read: {detail}")]
    Malformed { object: String, detail: String },
    #[error("{path}: {detail}")]
    Disk { path: String, detail: String },
}

impl Error {
    /// Whether reading again and deciding anew may help.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Conflict { .. } | Self::AlreadyExists(_) | Self::NotFound(_))
    }
}
