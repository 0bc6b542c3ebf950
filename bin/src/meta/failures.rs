//! What the library's errors are to the one who gave the command.

use quorate_meta::{Error, InvalidEndpoint, InvalidTopicName, ReadError};

use crate::failure::{Failure, Kind};

impl From<InvalidTopicName> for Failure {
    fn from(error: InvalidTopicName) -> Self {
        Failure::refused(error.to_string())
    }
}

impl From<InvalidEndpoint> for Failure {
    fn from(error: InvalidEndpoint) -> Self {
        Failure::refused(error.to_string())
    }
}

impl From<ReadError> for Failure {
    fn from(error: ReadError) -> Self {
        let kind = if error.is_retryable() {
            Kind::Unavailable
        } else {
            Kind::Failed
        };
        Failure::new(kind, error.to_string())
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        // A refusal says no for a reason that the caller can read, also where the same may be accepted later.
        let kind = match &error {
            Error::Refused(_) | Error::Name(_) | Error::Endpoint(_) | Error::TooLarge(_) => Kind::Refused,
            Error::Corrupt(_) => Kind::Failed,
            other if other.may_have_committed() => Kind::UnknownOutcome,
            other if other.is_retryable() => Kind::Unavailable,
            _ => Kind::Refused,
        };
        let failure = match error.refusals() {
            refusals @ [_, _, ..] => Failure::new(kind, "refused, nothing was changed")
                .details(refusals.iter().map(ToString::to_string)),
            _ => Failure::new(kind, error.to_string()),
        };
        match error {
            Error::TooLarge(_) => failure.hint(
                "create fewer partitions, and let the topic grow: quorate meta partition create TOPIC --total N",
            ),
            Error::Corrupt(_) => failure.hint("quorate meta check names every key that is no row"),
            Error::Conflict(_) => failure.hint("ask again"),
            _ => failure,
        }
    }
}
