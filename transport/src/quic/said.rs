//! A peer's words, as they may stand in a line of a log or in an error.
//!
//! A peer says why it closes a connection, before anybody knows who it is, in whatever bytes it likes. A line break among
//! them would begin a line of the log that looks like one of ours; other control characters change what a terminal shows.
//!
//! Always: what comes out is one line, and shows as what it is.

use std::fmt::{self, Write as _};

/// Shows what a peer may have made a part of.
#[derive(Debug, Clone, Copy)]
pub(super) struct Said<T>(pub(super) T);

impl<T: fmt::Display> fmt::Display for Said<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(Escaping(f), "{}", self.0)
    }
}

/// Text of a peer.
pub(super) fn text(said: &[u8]) -> String {
    Said(String::from_utf8_lossy(said)).to_string()
}

struct Escaping<'a, 'b>(&'a mut fmt::Formatter<'b>);

impl fmt::Write for Escaping<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for character in text.chars() {
            match changes_the_view(character) {
                true => write!(self.0, "{}", character.escape_default())?,
                false => self.0.write_char(character)?,
            }
        }
        Ok(())
    }
}

/// Control characters, what breaks lines otherwise, and what turns the direction of the text around it (Unicode, UAX 9).
fn changes_the_view(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{2028}' | '\u{2029}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peers_words_stay_on_their_line_and_words_of_any_language_as_they_are() {
        assert_eq!(text(b"a\r\nWARN b\x1b[2J\x00"), "a\\r\\nWARN b\\u{1b}[2J\\u{0}");
        assert_eq!(
            text("x\u{85}y\u{2028}z\u{202e}".as_bytes()),
            "x\\u{85}y\\u{2028}z\\u{202e}"
        );
        assert_eq!(text("größer \"als\" 日本\\".as_bytes()), "größer \"als\" 日本\\");
        assert_eq!(text(b"\xff"), "\u{fffd}");
        assert_eq!(Said(format_args!("{} {}", 1, "\n")).to_string(), "1 \\n");
    }
}
