//! Where a request head ends, and what hyper reads in place of one that is refused.

use crate::edge::visitors::http::validate::MAX_HEAD;
use crate::edge::visitors::http::violation::Violation;

/// How far the search for the end of a head has come.
///
/// It sees every line once, however small the pieces are in which a head arrives.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct HeadSearch {
    /// Bytes in which no end was found.
    searched: usize,
    /// Where the current line begins; nought until the request line begins.
    line: usize,
    /// Whether the request line is complete.
    has_request_line: bool,
}

/// A head that is refused, and how many of its bytes were needed to know.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) examined: usize,
    pub(crate) violation: Violation,
}

impl HeadSearch {
    /// Look for the end of the head with which `bytes` begins; return its length.
    ///
    /// `bytes` is what was passed last time and perhaps more.
    pub(crate) fn find_end(&mut self, bytes: &[u8]) -> Result<Option<usize>, Refusal> {
        let window = &bytes[..bytes.len().min(MAX_HEAD)];
        if !self.has_request_line && !begins_well(window)? {
            return Ok(None);
        }
        while let Some(found) = memchr::memchr(b'\n', &window[self.searched..]) {
            let end = self.searched + found;
            let refuse = |violation| {
                Err(Refusal {
                    examined: end,
                    violation,
                })
            };
            let Some(line) = window[self.line..end].strip_suffix(b"\r") else {
                return refuse(Violation::BareLineFeed);
            };
            self.line = end + 1;
            self.searched = end + 1;
            match line.first() {
                None if self.has_request_line => return Ok(Some(end + 1)),
                // The one empty line that `begins_well` lets pass.
                None => continue,
                Some(b' ' | b'\t') => return refuse(Violation::FoldedField),
                Some(_) => self.has_request_line = true,
            }
        }
        self.searched = window.len();
        if window.len() < MAX_HEAD {
            return Ok(None);
        }
        let violation = if self.has_request_line {
            Violation::HeadTooLarge
        } else {
            Violation::TargetTooLong
        };
        Err(Refusal {
            examined: MAX_HEAD,
            violation,
        })
    }
}

/// Check that a request begins with a method, as far as this can be seen; false is "not yet".
///
/// Whoever speaks TLS or anything else to the wrong port is told at once, not after a timeout. One
/// empty line in front is forgiven (RFC 9112 §2.2).
fn begins_well(bytes: &[u8]) -> Result<bool, Refusal> {
    let start = match bytes {
        [b'\r', b'\n', ..] => 2,
        [b'\r'] => return Ok(false),
        _ => 0,
    };
    match bytes.get(start) {
        None => Ok(false),
        Some(b'\n') => Err(Refusal {
            examined: start,
            violation: Violation::BareLineFeed,
        }),
        Some(b) if b.is_ascii_graphic() => Ok(true),
        Some(_) => Err(Refusal {
            examined: start,
            violation: Violation::MalformedRequestLine,
        }),
    }
}

/// Make the request that hyper gets in place of a refused one, so that it asks for an answer.
///
/// Of the refused request it has the method if that is HEAD, whose answer has no body, and the first
/// harmless `Accept`, which decides what kind of page the answer is.
pub(crate) fn stand_in(examined: &[u8]) -> Vec<u8> {
    let line = examined.trim_ascii_start();
    let method = if line.starts_with(b"HEAD ") {
        "HEAD"
    } else {
        "GET"
    };
    let mut request =
        format!("{method} / HTTP/1.1\r\nhost: invalid\r\nconnection: close\r\n").into_bytes();
    let accept = examined.split(|b| *b == b'\n').find_map(|line| {
        let (name, value) = line.split_at_checked(ACCEPT.len())?;
        name.eq_ignore_ascii_case(ACCEPT)
            .then(|| value.trim_ascii())
    });
    let harmless = |b: &u8| matches!(b, b' '..=b'~');
    if let Some(accept) =
        accept.filter(|value| value.len() <= MAX_ACCEPT && value.iter().all(harmless))
    {
        request.extend_from_slice(ACCEPT);
        request.extend_from_slice(accept);
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"\r\n");
    request
}

const ACCEPT: &[u8] = b"accept:";

/// The longest `Accept` that is carried over: browsers' have about 200 bytes.
const MAX_ACCEPT: usize = 512;
