//! Escaping of untrusted text for terminals and logs.

use std::borrow::Cow;
use std::fmt::Write;

/// Escape control characters, ANSI sequences, and characters that are invisible or change the
/// direction of text, so that a visitor's path or a peer's reason cannot forge a log line.
pub fn escape(text: &str) -> Cow<'_, str> {
    if text.bytes().all(|b| matches!(b, b' '..=b'~')) {
        return text.into();
    }
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if is_deceptive(c) {
            // Writing to a String cannot fail.
            let _ = write!(out, "\\u{{{:x}}}", c as u32);
        } else {
            out.push(c);
        }
    }
    out.into()
}

/// Report whether a character may deceive a reader: controls (C0, C1, DEL), line and paragraph
/// separators, zero-width and bidirectional formatting characters (Unicode Technical Report 36 §2,
/// CVE-2021-42574), tags, and private use.
fn is_deceptive(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
            | '\u{e000}'..='\u{f8ff}' | '\u{e0000}'..='\u{e0fff}')
}

#[cfg(test)]
mod tests {
    use super::escape;

    #[test]
    fn ordinary_text_in_any_script_is_left_alone() {
        assert_eq!(escape("/naïve/日本?q=%0a"), "/naïve/日本?q=%0a");
    }

    #[test]
    fn deceptive_characters_become_visible() {
        assert_eq!(escape("a\x1b[2J\r\n"), "a\\u{1b}[2J\\u{d}\\u{a}");
        assert_eq!(
            escape("x\u{202e}gpj.exe\u{200b}"),
            "x\\u{202e}gpj.exe\\u{200b}"
        );
        assert_eq!(escape("\u{9b}31m"), "\\u{9b}31m");
    }
}
