//! Scanner for the structure of a connection's bytes: heads, bodies, and where each ends. It does
//! no I/O.

use super::chunked::{Chunked, FramingError, Next};
use super::head;
use super::head::{Framing, Head};
use super::search::{HeadSearch, RefusedHead, substitute};
use super::verdicts::Verdicts;

/// State of the scanner: what the next byte belongs to.
#[derive(Debug)]
pub(crate) enum Scanner {
    Head(HeadSearch),
    /// A body with this many bytes left.
    Length(u64),
    Chunked(Chunked),
}

/// Reason why scanning stopped.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// All bytes are scanned, except for an incomplete head, which must be passed again with more
    /// bytes.
    Incomplete,
    /// The last head scanned asks for an upgrade.
    Upgrade,
    /// The next head is refused, and hyper must read this in its place.
    Refused(Vec<u8>),
    /// The next byte violates the framing of the body.
    Broken(FramingError),
}

impl Scanner {
    pub(crate) fn new() -> Self {
        Self::Head(HeadSearch::default())
    }

    /// Report whether the next byte belongs to a body.
    pub(crate) fn is_in_body(&self) -> bool {
        !matches!(self, Self::Head(_))
    }

    /// Scan messages in `bytes`; return how many bytes hyper may see, and why scanning stopped.
    ///
    /// A verdict is pushed for each head that ends in `bytes`.
    pub(crate) fn scan(&mut self, bytes: &[u8], verdicts: &Verdicts) -> (usize, Stop) {
        let mut passed = 0;
        while passed < bytes.len() {
            let rest = &bytes[passed..];
            match self {
                Self::Head(search) => {
                    let (length, head) = match next_head(search, rest) {
                        Ok(Some(found)) => found,
                        Ok(None) => break,
                        Err(RefusedHead {
                            examined,
                            violation,
                        }) => {
                            verdicts.push(Err(violation));
                            return (passed, Stop::Refused(substitute(&rest[..examined])));
                        }
                    };
                    passed += length;
                    verdicts.push(Ok(head.facts));
                    *self = match head.framing {
                        Framing::Length(0) => Self::new(),
                        Framing::Length(length) => Self::Length(length),
                        Framing::Chunked => Self::Chunked(Chunked::new()),
                    };
                    if head.facts.expects_upgrade {
                        return (passed, Stop::Upgrade);
                    }
                }
                Self::Length(left) => {
                    let here = rest.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                    passed += here;
                    *left -= here as u64;
                    if *left == 0 {
                        *self = Self::new();
                    }
                }
                Self::Chunked(chunked) => {
                    let (sound, next) = chunked.scan(rest);
                    passed += sound;
                    match next {
                        Next::Body => {}
                        Next::Message => *self = Self::new(),
                        Next::Broken(err) => return (passed, Stop::Broken(err)),
                    }
                }
            }
        }
        (passed, Stop::Incomplete)
    }
}

/// Find and examine the head at the start of `bytes`; `None` while it is incomplete.
fn next_head(search: &mut HeadSearch, bytes: &[u8]) -> Result<Option<(usize, Head)>, RefusedHead> {
    let Some(length) = search.find_end(bytes)? else {
        return Ok(None);
    };
    match head::examine(&bytes[..length]) {
        Ok(head) => Ok(Some((length, head))),
        Err(violation) => Err(RefusedHead {
            examined: length,
            violation,
        }),
    }
}
