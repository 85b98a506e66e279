//! Abilities that the ends of a session offer each other.

use std::ops::BitOr;

use serde::{Deserialize, Serialize};

/// A set of abilities, one bit each. An end never sends what needs an ability that the other has not offered, and
/// ignores bits that it does not know.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Features(pub u64);

impl Features {
    /// Conversations over HTTP: [`StreamHead::Http`](super::StreamHead::Http).
    pub const HTTP: Self = Self(1);

    /// Everything that this version can do.
    pub const ALL: Self = Self::HTTP;

    /// Report whether all of the other abilities are among these.
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl BitOr for Features {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}
