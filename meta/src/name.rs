//! Names of topics: 1 to 249 of `[A-Za-z0-9._-]`, neither "." nor "..".
//!
//! Always: a `TopicName` is valid; two topics whose names differ only in "." and "_" cannot both exist,
//! because metrics and file systems of the field take the two characters for each other.

use std::convert::Infallible;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// A valid name of a topic.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TopicName(Arc<str>);

/// Text that is no topic's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidTopicName {
    /// No character at all.
    #[error(
        "a topic's name has 1 to {} characters, this one has none",
        TopicName::BYTES_MAX
    )]
    Empty,
    /// More than [`TopicName::BYTES_MAX`].
    #[error(
        "a topic's name has 1 to {} characters, this one has {bytes} bytes",
        TopicName::BYTES_MAX
    )]
    TooLong {
        /// Its size.
        bytes: usize,
    },
    /// A character outside the set.
    #[error("{character:?} at byte {at}: a topic's name consists of A-Z, a-z, 0-9, '.', '_' and '-'")]
    Character {
        /// The character.
        character: char,
        /// The byte at which it begins.
        at: usize,
    },
    /// "." or "..", which file systems take for directories.
    #[error("a topic cannot be named {name:?}")]
    Dots {
        /// The name.
        name: String,
    },
}

impl TopicName {
    /// The longest name, in bytes and characters alike.
    pub const BYTES_MAX: usize = 249;

    /// Checks a name.
    pub fn new(name: &str) -> Result<Self, InvalidTopicName> {
        let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        match name {
            "" => Err(InvalidTopicName::Empty),
            "." | ".." => Err(InvalidTopicName::Dots { name: name.into() }),
            _ if name.len() > Self::BYTES_MAX => Err(InvalidTopicName::TooLong { bytes: name.len() }),
            _ => match name.char_indices().find(|(_, c)| !valid(*c)) {
                Some((at, character)) => Err(InvalidTopicName::Character { character, at }),
                None => Ok(Self(name.into())),
            },
        }
    }

    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What this name and every name that collides with it have in common; `None` for a name that can
    /// collide with no other, because it has neither "." nor "_".
    pub fn collision(&self) -> Option<String> {
        self.0.contains(['.', '_']).then(|| self.0.replace('.', "_"))
    }
}

impl fmt::Display for TopicName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for TopicName {
    type Err = InvalidTopicName;
    fn from_str(text: &str) -> Result<Self, InvalidTopicName> {
        TopicName::new(text)
    }
}

impl TryFrom<String> for TopicName {
    type Error = InvalidTopicName;
    fn try_from(text: String) -> Result<Self, InvalidTopicName> {
        TopicName::new(&text)
    }
}

impl TryFrom<&str> for TopicName {
    type Error = InvalidTopicName;
    fn try_from(text: &str) -> Result<Self, InvalidTopicName> {
        TopicName::new(text)
    }
}

impl TryFrom<&String> for TopicName {
    type Error = InvalidTopicName;
    fn try_from(text: &String) -> Result<Self, InvalidTopicName> {
        TopicName::new(text)
    }
}

impl From<&TopicName> for TopicName {
    fn from(name: &TopicName) -> Self {
        name.clone()
    }
}

/// Of a name that needs no check.
impl From<Infallible> for InvalidTopicName {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

impl From<TopicName> for String {
    fn from(name: TopicName) -> String {
        name.0.as_ref().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_within_the_rules_are_accepted() {
        for name in ["a", "orders.eu_1-x", "...", "A", &"x".repeat(249)] {
            assert_eq!(TopicName::new(name).unwrap().as_str(), name);
        }
    }

    #[test]
    fn names_outside_the_rules_are_refused_with_the_reason() {
        use InvalidTopicName::*;
        let long = "x".repeat(250);
        for (name, error) in [
            ("", Empty),
            (".", Dots { name: ".".into() }),
            ("..", Dots { name: "..".into() }),
            (long.as_str(), TooLong { bytes: 250 }),
            (
                "a/b",
                Character {
                    character: '/',
                    at: 1,
                },
            ),
            (
                "ä",
                Character {
                    character: 'ä',
                    at: 0,
                },
            ),
            (
                "a\0",
                Character {
                    character: '\0',
                    at: 1,
                },
            ),
        ] {
            assert_eq!(TopicName::new(name), Err(error), "{name:?}");
        }
    }

    #[test]
    fn names_that_differ_in_dots_and_underscores_collide() {
        let collision = |name: &str| TopicName::new(name).unwrap().collision();
        assert_eq!(collision("a.b_c"), collision("a_b.c"));
        assert_ne!(collision("a.b"), collision("a.c"));
        assert_eq!(collision("ab-c"), None);
    }
}
