//! Tokens, which authenticate agents. The edge stores hashes only.

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::proto::Secret;

/// Tokens that an edge accepts.
#[derive(Clone, Default)]
pub struct Tokens {
    hashes: Vec<[u8; 32]>,
    open: bool,
}

impl Tokens {
    /// Accept every agent: for an edge that only its own machine can reach.
    pub fn open() -> Self {
        Self {
            hashes: Vec::new(),
            open: true,
        }
    }

    /// Add an accepted token.
    pub fn add(&mut self, token: &Secret) {
        self.hashes.push(hash(token));
    }

    /// Return the id of an accepted token. The time it takes does not depend on how much of the token
    /// is right: hashes are compared, in constant time.
    pub fn accepts(&self, token: &Secret) -> Option<TokenId> {
        if self.open {
            return Some(TokenId::OPEN);
        }
        let offered = hash(token);
        // Every known token is compared, so that the time does not reveal the position of the match.
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

/// Identifier of a token, derived from its hash: enough to tell owners of names apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TokenId([u8; 8]);

impl TokenId {
    /// Id of every agent of an open edge.
    pub const OPEN: Self = Self([0; 8]);

    /// Format the id in hexadecimal, as it is stored in a file.
    pub fn to_hex(self) -> String {
        format!("{:016x}", u64::from_be_bytes(self.0))
    }

    /// Parse the output of [`to_hex`](Self::to_hex).
    pub fn from_hex(text: &str) -> Option<Self> {
        let valid = text.len() == 16 && text.bytes().all(|digit| digit.is_ascii_hexdigit());
        let number = valid.then(|| u64::from_str_radix(text, 16).ok())??;
        Some(Self(number.to_be_bytes()))
    }
}

/// Generate a token: 256 random bits, with a prefix by which secret scanners can recognise it.
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
