//! How a command fails: one of six ways, each with its exit code.

use std::fmt;
use std::process::ExitCode;

use serde::Serialize;

/// What became of a request that gave no result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// This program or this machine failed.
    Failed = 1,
    /// The request was refused; the same request is refused again. Nothing was changed.
    Refused = 2,
    /// What was asked for does not exist.
    NotFound = 3,
    /// Not now: nobody answered in time, or what stands in the way may pass by itself. Nothing was changed; the same request
    /// may succeed later.
    Unavailable = 4,
    /// The write may have taken effect, or has in part: what is known of it, the message says.
    UnknownOutcome = 5,
    /// The files that were looked at are not whole. Nothing was changed.
    Damaged = 6,
}

impl Kind {
    /// The code that the process ends with.
    pub fn code(self) -> u8 {
        self as u8
    }

    /// The same for `main`.
    pub fn exit_code(self) -> ExitCode {
        ExitCode::from(self.code())
    }
}

/// Why a command gave no result, and what to do about it. In JSON always with the same fields.
#[derive(Debug, Clone, Serialize)]
pub struct Failure {
    kind: Kind,
    message: String,
    /// Each of several reasons, where the message sums them up.
    details: Vec<String>,
    hint: Option<String>,
}

impl Failure {
    /// A failure of this kind.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            details: Vec::new(),
            hint: None,
        }
    }

    /// This program or this machine failed.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(Kind::Failed, message)
    }

    /// The request was refused.
    pub fn refused(message: impl Into<String>) -> Self {
        Self::new(Kind::Refused, message)
    }

    /// What was asked for does not exist.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(Kind::NotFound, message)
    }

    /// Nobody answered.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(Kind::Unavailable, message)
    }

    /// The same with each of several reasons.
    #[must_use]
    pub fn details(mut self, details: impl IntoIterator<Item = String>) -> Self {
        self.details.extend(details);
        self
    }

    /// The same with what was done when it happened, before its message.
    #[must_use]
    pub fn in_context(mut self, context: &str) -> Self {
        self.message = format!("{context}: {}", self.message);
        self
    }

    /// The same as another kind.
    #[must_use]
    pub fn of_kind(mut self, kind: Kind) -> Self {
        self.kind = kind;
        self
    }

    /// The same with what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Which of the six it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if !self.details.is_empty() {
            f.write_str(":")?;
        }
        for detail in &self.details {
            write!(f, "\n  {detail}")?;
        }
        match &self.hint {
            Some(hint) => write!(f, "\n  hint: {hint}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Failure {}
