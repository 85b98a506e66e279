//! Tokens: what authenticates an agent. The edge keeps hashes only.

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::proto::Secret;

/// The tokens that an edge accepts.
#[derive(Clone, Default)]
pub struct Tokens {
    hashes: Vec<[u8; 32]>,
    open: bool,
}

impl Tokens {
    /// Accept everybody: for an edge that only its own machine can reach.
    pub fn open() -> Self {
        Self {
            hashes: Vec::new(),
            open: true,
        }
    }

    /// Accept one more token.
    pub fn add(&mut self, token: &Secret) {
        self.hashes.push(hash(token));
    }

    /// Check a token, in time that does not depend on how much of it is right (the comparison is of
    /// hashes, and it is constant-time).
    pub fn accepts(&self, token: &Secret) -> Option<TokenId> {
        if self.open {
            return Some(TokenId::OPEN);
        }
        let offered = hash(token);
        // Every known token is compared, so that the position of the right one does not show.
        let mut accepted = None;
        for known in &self.hashes {
            if verify_slices_are_equal(known, &offered).is_ok() {
                let mut id = [0; 8];
                id.copy_from_slice(&known[..8]);
                accepted = Some(TokenId(id));
            }
        }
        accepted
    }
}

/// Which token it was, without the token: enough to tell owners of names apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TokenId([u8; 8]);

impl TokenId {
    /// What every agent of an open edge shows: it tells nobody apart.
    pub const OPEN: Self = Self([0; 8]);

    /// Write the id, as it is kept in a file.
    pub fn to_hex(self) -> String {
        format!("{:016x}", u64::from_be_bytes(self.0))
    }

    /// Read what [`to_hex`](Self::to_hex) wrote.
    pub fn from_hex(text: &str) -> Option<Self> {
        let valid = text.len() == 16 && text.bytes().all(|digit| digit.is_ascii_hexdigit());
        let number = valid.then(|| u64::from_str_radix(text, 16).ok())??;
        Some(Self(number.to_be_bytes()))
    }
}

/// Make a token: 256 random bits, with a prefix by which secret scanners can recognise it.
pub fn generate() -> Secret {
    let mut random = [0; 32];
    aws_lc_rs::rand::fill(&mut random).expect("the operating system has random numbers");
    Secret::new(format!("qt_{}", URL_SAFE_NO_PAD.encode(random)))
}

fn hash(token: &Secret) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, token.reveal().as_bytes()).as_ref());
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_known_token_is_accepted() {
        let (mine, yours) = (generate(), generate());
        let mut tokens = Tokens::default();
        tokens.add(&mine);

        assert!(tokens.accepts(&mine).is_some());
        assert!(tokens.accepts(&yours).is_none());
        assert!(tokens.accepts(&Secret::default()).is_none());
    }

    #[test]
    fn an_edge_without_tokens_accepts_nobody_unless_it_is_open() {
        assert!(Tokens::default().accepts(&Secret::default()).is_none());
        assert!(Tokens::open().accepts(&Secret::default()).is_some());
    }
}
