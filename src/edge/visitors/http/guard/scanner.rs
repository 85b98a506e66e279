//! The structure of a connection's bytes: heads, bodies, and where each ends. No input, no output.

use super::chunked::{BodyError, Chunked, Next};
use super::head;
use super::head::{Framing, Head};
use super::search::{HeadSearch, Refusal, stand_in};
use super::verdicts::Verdicts;

/// What the next byte of a connection belongs to.
#[derive(Debug)]
pub(crate) enum Scanner {
    Head(HeadSearch),
    /// A body that has so many bytes left.
    Length(u64),
    Chunked(Chunked),
}

/// Why scanning stopped.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// The bytes are used up, but for the beginning of a head. They must be there the next time.
    Incomplete,
    /// The head in front asks for an upgrade.
    Upgrade,
    /// The next head is refused, and this is to be read in its place.
    Refused(Vec<u8>),
    /// The next byte does not belong into the body.
    Broken(BodyError),
}

impl Scanner {
    pub(crate) fn new() -> Self {
        Self::Head(HeadSearch::default())
    }

    pub(crate) fn is_in_body(&self) -> bool {
        !matches!(self, Self::Head(_))
    }

    /// Follow messages through `bytes`; return how many bytes hyper may see, and what is then.
    ///
    /// Each head that ends in `bytes` has its verdict pushed.
    pub(crate) fn scan(&mut self, bytes: &[u8], verdicts: &Verdicts) -> (usize, Stop) {
        let mut passed = 0;
        while passed < bytes.len() {
            let rest = &bytes[passed..];
            match self {
                Self::Head(search) => {
                    let (length, head) = match next_head(search, rest) {
                        Ok(Some(found)) => found,
                        Ok(None) => break,
                        Err(Refusal {
                            examined,
                            violation,
                        }) => {
                            verdicts.push(Err(violation));
                            return (passed, Stop::Refused(stand_in(&rest[..examined])));
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

/// Find and examine the head with which `bytes` begins; `None` while it is not whole.
fn next_head(search: &mut HeadSearch, bytes: &[u8]) -> Result<Option<(usize, Head)>, Refusal> {
    let Some(length) = search.find_end(bytes)? else {
        return Ok(None);
    };
    match head::examine(&bytes[..length]) {
        Ok(head) => Ok(Some((length, head))),
        Err(violation) => Err(Refusal {
            examined: length,
            violation,
        }),
    }
}
