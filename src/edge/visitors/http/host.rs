//! The syntax of `host [":" port]`, wherever a request names its host.

use std::net::Ipv6Addr;

/// A host and a port, as the visitor spelt them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Host<'a> {
    /// The name or address, including the brackets of an IPv6 literal.
    name: &'a str,
    port: Option<u16>,
}

impl<'a> Host<'a> {
    /// Parse a `Host` field's value or a target's authority.
    ///
    /// Narrower than RFC 3986 §3.2.2 on purpose: of a registered name's characters only the
    /// unreserved ones are accepted. Commas, percent signs and the like never occur in a DNS name,
    /// but are used to make one field look like two hosts. Userinfo is refused (RFC 9110 §4.2.4).
    pub(crate) fn parse(bytes: &'a [u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        let name_end = if text.starts_with('[') {
            let end = text.find(']')?;
            text[1..end].parse::<Ipv6Addr>().ok()?;
            end + 1
        } else {
            let end = text.find(':').unwrap_or(text.len());
            let name = &text.as_bytes()[..end];
            let known = |b: &u8| b.is_ascii_alphanumeric() || b"-._~".contains(b);
            if name.is_empty() || name.len() > MAX_NAME || !name.iter().all(known) {
                return None;
            }
            end
        };
        let port = match &text[name_end..] {
            // An empty port is grammatical and means the scheme's own (RFC 3986 §3.2.3).
            "" | ":" => None,
            rest => {
                let digits = rest.strip_prefix(':')?;
                // Zeros in front of it may be as many as there is room for in a head.
                if digits.len() > MAX_PORT || !digits.bytes().all(|b| b.is_ascii_digit()) {
                    return None;
                }
                Some(digits.parse().ok()?)
            }
        };
        Some(Self {
            name: &text[..name_end],
            port,
        })
    }

    /// Return the name in lower case, without the final dot of a fully qualified name.
    pub(crate) fn canonical(&self) -> String {
        let name = self.name.strip_suffix('.').unwrap_or(self.name);
        name.to_ascii_lowercase()
    }

    /// Report whether both are the same host and port under a scheme with this default port.
    pub(crate) fn agrees_with(&self, other: &Host<'_>, default_port: u16) -> bool {
        self.name.eq_ignore_ascii_case(other.name)
            && self.port.unwrap_or(default_port) == other.port.unwrap_or(default_port)
    }
}

/// Length of the longest name that DNS can hold (RFC 1035 §3.1), with the final dot.
const MAX_NAME: usize = 254;

/// Digits of the longest port.
const MAX_PORT: usize = 5;

#[cfg(test)]
mod tests {
    use super::*;

    fn canonical(text: &str) -> Option<String> {
        Host::parse(text.as_bytes()).map(|host| host.canonical())
    }

    #[test]
    fn valid_hosts_are_accepted() {
        for (text, name) in [
            ("blog.example.com", "blog.example.com"),
            ("Blog.Example.COM:8080", "blog.example.com"),
            ("blog.localhost.", "blog.localhost"),
            ("a_b.example.com", "a_b.example.com"),
            ("127.0.0.1:65535", "127.0.0.1"),
            ("example.com:", "example.com"),
            ("example.com:00080", "example.com"),
            ("[::1]", "[::1]"),
            ("[2001:DB8::1]:443", "[2001:db8::1]"),
        ] {
            assert_eq!(canonical(text).as_deref(), Some(name), "{text}");
        }
    }

    #[test]
    fn anything_else_is_malformed() {
        for text in [
            "",
            ":80",
            "a b",
            "a,b",
            "a/b",
            "user@a",
            "a:b",
            "a:+1",
            "a:65536",
            "a:000080",
            "a:1:2",
            "::1",
            "[::1",
            "[::1]x",
            "[::1%25eth0]",
            "[v1.x]",
            "[]",
            "a%2eb",
            "a\\b",
            "a?b",
            "a#b",
            "é.example",
            "a:80 ",
        ] {
            assert_eq!(canonical(text), None, "{text}");
        }
        assert_eq!(canonical(&"a".repeat(255)), None);
        assert!(Host::parse(b"a\xff").is_none());
        assert!(Host::parse(b"a\0").is_none());
    }

    #[test]
    fn a_missing_port_is_the_default_port() {
        let host = |text: &'static str| Host::parse(text.as_bytes()).expect("a host");

        assert!(host("A.example").agrees_with(&host("a.example:80"), 80));
        assert!(!host("a.example").agrees_with(&host("a.example:80"), 443));
        assert!(!host("a.example").agrees_with(&host("b.example"), 80));
    }
}
