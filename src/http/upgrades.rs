//! Protocols that a tunnel's visitors may switch to (RFC 9110 §7.8): `websocket`, and others by
//! name.
//!
//! After a switch the edge sees bytes instead of requests. A protocol that is HTTP again (`h2c`)
//! would bypass every rule of the edge, so it is never allowed, whatever a tunnel asks for. Both
//! ends enforce this, because neither trusts the other.

use std::str::FromStr;

use crate::proto::{UPGRADE_LIMIT, is_protocol};

/// Protocols that visitors of one tunnel may switch to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Upgrades {
    /// Names besides `websocket`, in lower case.
    others: Vec<String>,
}

impl Upgrades {
    /// Allow one more protocol.
    ///
    /// # Errors
    /// [`UpgradeError`] if it is not a name, is HTTP again, or is one too many.
    pub fn allow(&mut self, name: &str) -> Result<(), UpgradeError> {
        let UpgradeName(name) = name.parse()?;
        if name == WEBSOCKET || self.others.contains(&name) {
            return Ok(());
        }
        if self.others.len() >= MAX_OTHERS {
            return Err(UpgradeError::TooMany);
        }
        self.others.push(name);
        Ok(())
    }

    /// Return the allowed protocols among those that an agent asks for.
    pub(crate) fn granted(names: &[String]) -> Self {
        let mut upgrades = Self::default();
        for name in names {
            if let Err(err) = upgrades.allow(name) {
                tracing::debug!(%err, ?name, "an agent asked for a protocol that is not allowed");
            }
        }
        upgrades
    }

    /// Return the names besides `websocket`.
    pub(crate) fn others(&self) -> &[String] {
        &self.others
    }

    /// Return the allowed protocols of an `Upgrade` field that fit a request head, in their order, or `None`.
    pub(crate) fn select(&self, asked: &str) -> Option<String> {
        let mut kept = String::new();
        for protocol in protocols(asked).filter(|protocol| self.has(name(protocol))) {
            let separator = if kept.is_empty() { "" } else { ", " };
            let fits = kept.len() + separator.len() + protocol.len() <= UPGRADE_LIMIT;
            // The version behind a name is the visitor's text.
            if fits && is_protocol(protocol) {
                kept.push_str(separator);
                kept.push_str(protocol);
            }
        }
        (!kept.is_empty()).then_some(kept)
    }

    fn has(&self, name: &str) -> bool {
        let is = |known: &str| name.eq_ignore_ascii_case(known);
        is(WEBSOCKET) || self.others.iter().any(|other| is(other))
    }
}

/// Report whether a response switches only to protocols that were asked for. A 101 names its
/// protocol (RFC 9110 §15.2.2).
pub(crate) fn is_answer_to(asked: &str, answered: Option<&[u8]>) -> bool {
    let Some(answered) = answered.and_then(|answered| std::str::from_utf8(answered).ok()) else {
        return false;
    };
    let was_asked = |answer: &str| {
        protocols(asked).any(|protocol| name(protocol).eq_ignore_ascii_case(name(answer)))
    };
    protocols(answered).next().is_some() && protocols(answered).all(was_asked)
}

/// Name of a protocol that may be switched to, in lower case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpgradeName(String);

impl UpgradeName {
    /// Return the name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for UpgradeName {
    type Err = UpgradeError;

    fn from_str(text: &str) -> Result<Self, UpgradeError> {
        let is_token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        if text.is_empty() || text.len() > MAX_NAME_LENGTH || !text.bytes().all(is_token) {
            return Err(UpgradeError::Malformed);
        }
        let name = text.to_ascii_lowercase();
        if is_http(&name) {
            return Err(UpgradeError::Http);
        }
        Ok(Self(name))
    }
}

/// Reason why a protocol cannot be allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UpgradeError {
    /// The name is not a token.
    #[error(
        "a protocol is a name without a version, such as spdy (at most {MAX_NAME_LENGTH} characters)"
    )]
    Malformed,
    /// The protocol carries requests that the edge would not see.
    #[error("this protocol carries requests that the edge could not check")]
    Http,
    /// The tunnel has too many protocols.
    #[error("at most {MAX_OTHERS} protocols besides websocket are allowed for one tunnel")]
    TooMany,
}

/// Report whether a protocol is HTTP in another form: cleartext HTTP/2 and its drafts (RFC 7540
/// §3.2), another version (RFC 9110 §7.8), or within TLS (RFC 2817).
fn is_http(name: &str) -> bool {
    ["http", "h2", "h3"]
        .iter()
        .any(|prefix| name.starts_with(prefix))
        || name == "tls"
}

fn protocols(list: &str) -> impl Iterator<Item = &str> {
    list.split(',')
        .map(|protocol| protocol.trim_matches([' ', '\t']))
        .filter(|protocol| !protocol.is_empty())
}

/// Return a protocol's name without its version.
fn name(protocol: &str) -> &str {
    protocol.split('/').next().unwrap_or(protocol)
}

/// Protocol that every tunnel allows.
const WEBSOCKET: &str = "websocket";

/// Most protocols of one tunnel besides `websocket`: nobody needs more than one or two.
const MAX_OTHERS: usize = 8;

/// Longest name, in bytes. The longest registered ones (`IRC`, `RTA/x11`, `websocket`) are far
/// shorter.
const MAX_NAME_LENGTH: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    fn with(names: &[&str]) -> Upgrades {
        let mut upgrades = Upgrades::default();
        for name in names {
            upgrades.allow(name).expect("an allowed name");
        }
        upgrades
    }

    #[test]
    fn only_websocket_is_allowed_unless_others_are_named() {
        let (usual, more) = (Upgrades::default(), with(&["SPDY"]));

        assert_eq!(usual.select("WebSocket").as_deref(), Some("WebSocket"));
        assert_eq!(usual.select("spdy/3.1"), None);
        assert_eq!(more.select("SPDY/3.1").as_deref(), Some("SPDY/3.1"));
        assert_eq!(
            more.select("h2c, websocket ,, x, spdy/3").as_deref(),
            Some("websocket, spdy/3")
        );
        assert_eq!(usual.select(""), None);
    }

    #[test]
    fn what_is_kept_fits_into_a_head_whatever_stands_behind_the_names() {
        let usual = Upgrades::default();
        let long = format!("websocket/{}", "1".repeat(UPGRADE_LIMIT));
        let many = "websocket, ".repeat(UPGRADE_LIMIT);

        for odd in [
            "websocket/;",
            "websocket/\"1\"",
            "websocket/a\tb",
            "websocket/é",
            &long,
        ] {
            assert_eq!(usual.select(odd), None, "{odd}");
            let beside = format!("{odd}, websocket");
            assert_eq!(usual.select(&beside).as_deref(), Some("websocket"), "{odd}");
        }
        assert!(usual.select(&many).is_some_and(|kept| is_protocol(&kept)));
    }

    #[test]
    fn http_in_another_form_is_never_allowed() {
        for name in [
            "h2c", "H2C", "h2", "h2c-14", "h3", "HTTP", "http2", "tls", "TLS",
        ] {
            assert_eq!(
                Upgrades::default().allow(name),
                Err(UpgradeError::Http),
                "{name}"
            );
        }
        let granted = Upgrades::granted(&["h2c".into(), "x y".into(), "echo".into()]);
        assert_eq!(granted, with(&["echo"]));
        assert_eq!(granted.select("h2c, HTTP/2.0, TLS/1.0"), None);
    }

    #[test]
    fn a_name_is_a_short_token_and_there_are_few() {
        let mut upgrades = Upgrades::default();
        for name in ["", "a b", "a/1", "a,b", "é", &"a".repeat(33)] {
            assert_eq!(
                upgrades.allow(name),
                Err(UpgradeError::Malformed),
                "{name:?}"
            );
        }
        upgrades.allow(&"a".repeat(32)).expect("at the limit");
        for at in 1..8 {
            upgrades.allow(&format!("x{at}")).expect("at the limit");
        }
        assert_eq!(upgrades.allow("x8"), Err(UpgradeError::TooMany));
        assert_eq!(upgrades.allow("X7"), Ok(()));
        assert_eq!(upgrades.allow("websocket"), Ok(()));
    }

    #[test]
    fn a_response_names_only_protocols_that_were_asked_for() {
        let answers = |answered: &str| is_answer_to("websocket, x/2", Some(answered.as_bytes()));

        assert!(answers("WebSocket") && answers("x/2") && answers("x/2, websocket"));
        assert!(!answers("h2c") && !answers("websocket, h2c") && !answers("") && !answers(","));
        assert!(!is_answer_to("websocket", None));
        assert!(!is_answer_to("websocket", Some(b"\xff")));
    }
}
