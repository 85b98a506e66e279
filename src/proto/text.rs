//! Untrusted text from a peer, safe to show to people.

use std::fmt;
use std::ops::Deref;

use serde::{Deserialize, Deserializer, Serialize};

use super::escape;

/// Text that is safe to show, whoever wrote it: [escaped](fn@escape) and at most [`TEXT_LIMIT`]
/// bytes long.
///
/// Every text in a message has this type, so that no message brings control characters to a log or
/// a terminal.
#[derive(Clone, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct Text(String);

impl Text {
    /// Convert bytes that should be text, such as the reason of a QUIC close.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let bytes = &bytes[..bytes.len().min(TEXT_LIMIT + 1)];
        String::from_utf8_lossy(bytes).as_ref().into()
    }

    /// Return the text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        // Escaping shortens nothing: what is beyond the limit cannot be shown.
        let start = prefix(text, TEXT_LIMIT + 1);
        let shown = escape(start);
        Self(match shown.len() > TEXT_LIMIT || start.len() < text.len() {
            true => format!("{}{ELLIPSIS}", prefix(&shown, TEXT_LIMIT - ELLIPSIS.len())),
            false => shown.into_owned(),
        })
    }
}

impl From<String> for Text {
    fn from(text: String) -> Self {
        text.as_str().into()
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        <&str>::deserialize(deserializer).map(Self::from)
    }
}

impl Deref for Text {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl PartialEq<str> for Text {
    fn eq(&self, other: &str) -> bool {
        self.0 == other
    }
}

impl PartialEq<&str> for Text {
    fn eq(&self, other: &&str) -> bool {
        self.0 == *other
    }
}

impl PartialEq<String> for Text {
    fn eq(&self, other: &String) -> bool {
        self.0 == *other
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// Return the longest prefix of `text` that fits into `limit` bytes.
fn prefix(text: &str, limit: usize) -> &str {
    let mut end = text.len().min(limit);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// Longest text, in bytes: some ten lines of a terminal.
pub const TEXT_LIMIT: usize = 1 << 10;

/// Mark at the end of a text that was cut.
const ELLIPSIS: &str = "…";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_a_peer_is_escaped_and_cut() {
        let forged = Text::from("fine\r\n2026-01-01 INFO forged \x1b[2J\u{202e}");
        let long = Text::from("é".repeat(TEXT_LIMIT));
        let longest = Text::from("n".repeat(TEXT_LIMIT));
        let bytes = Text::from_bytes(b"\xff\x9b31m");

        assert_eq!(
            forged,
            "fine\\u{d}\\u{a}2026-01-01 INFO forged \\u{1b}[2J\\u{202e}"
        );
        assert!(long.len() <= TEXT_LIMIT && long.ends_with("é…"));
        assert_eq!(longest.len(), TEXT_LIMIT);
        assert_eq!(bytes, "\u{fffd}\u{fffd}31m");
    }

    #[test]
    fn safe_text_stays_as_it_is() {
        for text in ["", "naïve 日本", "\\u{1b}[2J", &"\u{1b}".repeat(TEXT_LIMIT)] {
            let once = Text::from(text);

            assert_eq!(Text::from(once.as_str()), once);
        }
    }
}
