//! Names: the label in front of the edge's domain.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;

use aws_lc_rs::digest::{SHA256, digest};

/// A DNS label (RFC 1123 §2.1) that no browser, mail server or certificate authority treats
/// specially, in lower case.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(String);

impl Name {
    /// Return the label.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Derive a name from a seed: two words and a short suffix, always the same for the same seed.
    pub fn derive(seed: &[u8]) -> Self {
        let hash = digest(&SHA256, seed);
        let hash = hash.as_ref();
        let word = |words: &[&'static str], at: usize| {
            words[usize::from(u16::from_be_bytes([hash[at], hash[at + 1]])) % words.len()]
        };
        // Four characters out of 27: 2^32 names with the words, so that two agents hardly ever
        // collide.
        let suffix: String = hash[4..8]
            .iter()
            .map(|byte| char::from(ALPHABET[usize::from(*byte) % ALPHABET.len()]))
            .collect();
        Self(format!(
            "{}-{}-{suffix}",
            word(ADJECTIVES, 0),
            word(NOUNS, 2)
        ))
    }

    /// Generate a name that nobody can guess.
    pub fn random() -> Self {
        let mut seed = [0; 16];
        aws_lc_rs::rand::fill(&mut seed).expect("the operating system has random numbers");
        Self::derive(&seed)
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let label = text.to_ascii_lowercase();
        let allowed = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
        if label.is_empty() {
            Err(NameError::Empty)
        } else if label.len() > 63 {
            Err(NameError::TooLong)
        } else if !label.bytes().all(allowed) {
            Err(NameError::Character)
        } else if label.starts_with('-') || label.ends_with('-') {
            Err(NameError::Hyphen)
        } else if label.get(2..4) == Some("--") {
            Err(NameError::Punycode)
        } else if RESERVED.contains(&label.as_str()) {
            Err(NameError::Reserved)
        } else {
            Ok(Self(label))
        }
    }
}

impl Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Reason why a text is not a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The text is empty.
    #[error("it is empty")]
    Empty,
    /// DNS allows 63 bytes (RFC 1035 §2.3.4).
    #[error("it is longer than 63 characters")]
    TooLong,
    /// A character other than a letter, digit or hyphen.
    #[error("only letters a to z, digits and hyphens are allowed")]
    Character,
    /// A leading or trailing hyphen.
    #[error("it must not begin or end with a hyphen")]
    Hyphen,
    /// A prefix such as `xn--`, which browsers show as something else (RFC 5890 §2.3.1).
    #[error("two hyphens in the third and fourth place are reserved for other alphabets")]
    Punycode,
    /// A name that visitors or software would trust.
    #[error("it is reserved")]
    Reserved,
}

/// Names with a meaning to mail, certificate and discovery software (RFC 2142, RFC 7208, WPAD,
/// autodiscovery), and those that visitors would take for the edge itself.
const RESERVED: &[&str] = &[
    "www",
    "mail",
    "smtp",
    "imap",
    "pop",
    "pop3",
    "mx",
    "ns",
    "ns1",
    "ns2",
    "dns",
    "ftp",
    "api",
    "admin",
    "administrator",
    "root",
    "hostmaster",
    "postmaster",
    "webmaster",
    "abuse",
    "security",
    "noc",
    "support",
    "info",
    "ssladmin",
    "sysadmin",
    "is",
    "it",
    "mis",
    "wpad",
    "isatap",
    "autodiscover",
    "autoconfig",
    "broadcasthost",
    "localhost",
    "localdomain",
    "qtunnel",
    "edge",
    "status",
    "auth",
    "login",
    "account",
    "accounts",
    "dashboard",
    "billing",
    "mta-sts",
];

/// Letters and digits without vowels and look-alikes: they form no words and none is misread.
const ALPHABET: &[u8] = b"bcdfghjkmnpqrstvwxz23456789";

const ADJECTIVES: &[&str] = &[
    "amber", "ample", "arctic", "autumn", "azure", "bold", "brave", "breezy", "bright", "brisk",
    "broad", "calm", "candid", "cheery", "clear", "clever", "coastal", "cool", "copper", "coral",
    "cosmic", "cosy", "crisp", "dainty", "daring", "dawn", "deep", "deft", "dewy", "eager",
    "early", "earnest", "easy", "ebony", "fabled", "fair", "fancy", "fast", "fine", "firm",
    "fluent", "fond", "frank", "free", "fresh", "gentle", "gilded", "glad", "golden", "good",
    "grand", "green", "happy", "hardy", "hazel", "hearty", "honest", "humble", "icy", "ideal",
    "ivory", "jade", "jolly", "jovial", "keen", "kind", "late", "lively", "loyal", "lucid",
    "lucky", "lunar", "maple", "mellow", "merry", "mighty", "mild", "misty", "modest", "neat",
    "nimble", "noble", "northern", "novel", "olive", "opal", "patient", "peachy", "placid",
    "plucky", "polar", "polite", "prime", "proud", "pure", "quick", "quiet", "rapid", "rare",
    "ready", "regal", "rosy", "royal", "ruby", "rustic", "sandy", "scarlet", "serene", "sharp",
    "shiny", "silent", "silky", "silver", "sleek", "smooth", "snowy", "solar", "solid", "spry",
    "stable", "steady", "stellar", "still", "sunny", "swift", "tender", "tidy", "tranquil", "trim",
    "trusty", "upbeat", "vast", "velvet", "verdant", "vivid", "warm", "wild", "windy", "wise",
    "witty", "young", "zesty",
];

const NOUNS: &[&str] = &[
    "acorn", "anchor", "aspen", "atlas", "aurora", "badger", "bamboo", "basin", "bay", "beach",
    "beacon", "beaver", "birch", "bison", "bloom", "breeze", "bridge", "brook", "canyon", "cedar",
    "cliff", "cloud", "clover", "comet", "cove", "crane", "creek", "crest", "cypress", "dale",
    "delta", "dolphin", "dove", "dune", "eagle", "echo", "ember", "falcon", "fern", "field",
    "finch", "fjord", "forest", "fox", "galaxy", "garden", "geyser", "glacier", "glade", "grove",
    "gull", "harbor", "hare", "harvest", "hawk", "heron", "hill", "horizon", "island", "jaguar",
    "jasmine", "juniper", "kestrel", "kite", "lagoon", "lake", "lantern", "lark", "laurel", "leaf",
    "lemur", "lily", "linden", "lotus", "lynx", "maple", "marsh", "meadow", "mesa", "meteor",
    "moon", "moss", "mountain", "nebula", "oak", "oasis", "ocean", "orchard", "orchid", "osprey",
    "otter", "owl", "palm", "panda", "peak", "pebble", "pelican", "pine", "planet", "plateau",
    "pond", "poplar", "prairie", "puffin", "quail", "quartz", "rain", "raven", "reef", "ridge",
    "river", "robin", "sail", "sequoia", "shore", "sky", "snow", "sparrow", "spring", "spruce",
    "star", "stone", "storm", "stream", "summit", "sun", "swan", "thicket", "tiger", "trail",
    "tulip", "tundra", "valley", "violet", "walnut", "wave", "whale", "willow", "wind", "wolf",
    "wren", "zephyr",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_a_name_in_lower_case() {
        assert_eq!("Blog-2".parse::<Name>().unwrap().as_str(), "blog-2");
        assert!("a".repeat(63).parse::<Name>().is_ok());
    }

    #[test]
    fn invalid_and_reserved_names_are_refused_with_the_reason() {
        let refused = |text: &str| text.parse::<Name>().unwrap_err();
        assert_eq!(refused(""), NameError::Empty);
        assert_eq!(refused(&"a".repeat(64)), NameError::TooLong);
        assert_eq!(refused("a.b"), NameError::Character);
        assert_eq!(refused("a_b"), NameError::Character);
        assert_eq!(refused("é"), NameError::Character);
        assert_eq!(refused("-a"), NameError::Hyphen);
        assert_eq!(refused("a-"), NameError::Hyphen);
        assert_eq!(refused("xn--bcher-kva"), NameError::Punycode);
        assert_eq!(refused("WWW"), NameError::Reserved);
    }

    #[test]
    fn a_derived_name_is_valid_and_stable() {
        for seed in 0..2000u32 {
            let name = Name::derive(&seed.to_be_bytes());
            assert_eq!(name.as_str().parse(), Ok(name.clone()), "{name}");
        }
        assert_eq!(Name::derive(b"x"), Name::derive(b"x"));
        assert_ne!(Name::derive(b"x"), Name::derive(b"y"));
        assert_ne!(Name::random(), Name::random());
    }
}
