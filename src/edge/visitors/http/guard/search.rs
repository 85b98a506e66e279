//! The search for the end of a request head, and the request that hyper reads in place of a refused
//! one.

use crate::edge::visitors::http::head_limits::MAX_HEAD;
use crate::edge::visitors::http::violation::Violation;

/// Progress of the search for the end of a head.
///
/// Every line is examined once, however small the pieces in which a head arrives.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct HeadSearch {
    /// Number of bytes in which no end was found.
    searched: usize,
    /// Offset of the current line; zero until the request line begins.
    line: usize,
    /// The request line is complete.
    has_request_line: bool,
}

/// A refused head, and how many of its bytes it took to know.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct RefusedHead {
    pub(crate) examined: usize,
    pub(crate) violation: Violation,
}

impl HeadSearch {
    /// Look for the end of the head at the start of `bytes`; return its length.
    ///
    /// `bytes` must begin with what was passed the last time.
    pub(crate) fn find_end(&mut self, bytes: &[u8]) -> Result<Option<usize>, RefusedHead> {
        let window = &bytes[..bytes.len().min(MAX_HEAD)];
        if !self.has_request_line && !starts_with_method(window)? {
            return Ok(None);
        }
        while let Some(found) = memchr::memchr(b'\n', &window[self.searched..]) {
            let end = self.searched + found;
            let refuse = |violation| {
                Err(RefusedHead {
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
                // The one empty line that `starts_with_method` accepts.
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
        Err(RefusedHead {
            examined: MAX_HEAD,
            violation,
        })
    }
}

/// Check that a request begins with a method, as far as the bytes show; `false` if it is too early
/// to say.
///
/// A client that speaks TLS or something else to the wrong port is answered at once, not after a
/// timeout. One empty line in front is allowed (RFC 9112 §2.2).
fn starts_with_method(bytes: &[u8]) -> Result<bool, RefusedHead> {
    let start = match bytes {
        [b'\r', b'\n', ..] => 2,
        [b'\r'] => return Ok(false),
        _ => 0,
    };
    match bytes.get(start) {
        None => Ok(false),
        Some(b'\n') => Err(RefusedHead {
            examined: start,
            violation: Violation::BareLineFeed,
        }),
        Some(b) if b.is_ascii_graphic() => Ok(true),
        Some(_) => Err(RefusedHead {
            examined: start,
            violation: Violation::MalformedRequestLine,
        }),
    }
}

/// Make the request that hyper reads in place of a refused one, so that it asks the service for a
/// response.
///
/// It keeps the refused request's method if that is HEAD, whose response has no body, and the first
/// harmless `Accept`, which decides the format of the error page.
pub(crate) fn substitute(examined: &[u8]) -> Vec<u8> {
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

/// Longest `Accept` that is kept, in bytes: browsers send about 200.
const MAX_ACCEPT: usize = 512;
