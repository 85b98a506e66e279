//! Removal of cookies for a parent domain, which other tunnels would receive.
//!
//! `blog.example.com` may set a cookie for `example.com` (RFC 6265 §5.3), and browsers then send it
//! to `shop.example.com` as well. Below an edge's domain these belong to different people.

use std::ops::Range;

use ::http::header::{HeaderMap, HeaderName, SET_COOKIE};

/// Remove the cookies for a domain above `host`, which is in lower case and without a port. Return
/// how many were removed.
pub(crate) fn remove_parent_domain_cookies(fields: &mut HeaderMap, host: &str) -> usize {
    let mut removed = 0;
    for name in [SET_COOKIE, SET_COOKIE2] {
        let lines = fields.get_all(&name).iter();
        let wide = lines.filter(|line| reaches_beyond(line.as_bytes(), host));
        let wide = wide.count();
        if wide == 0 {
            continue;
        }
        let lines = fields.get_all(&name).iter();
        let kept = lines.filter(|line| !reaches_beyond(line.as_bytes(), host));
        let kept: Vec<_> = kept.cloned().collect();
        fields.remove(&name);
        for line in kept {
            fields.append(name.clone(), line);
        }
        removed += wide;
    }
    removed
}

/// Return the positions of `Domain` attributes' values in a cookie, without whitespace around them.
pub(crate) fn domains(cookie: &[u8]) -> impl Iterator<Item = Range<usize>> {
    let mut at = 0;
    // The cookie's own name and value come first.
    let attributes = cookie.split(|b| *b == b';').map(move |part| {
        let start = at;
        at += part.len() + 1;
        (start, part)
    });
    attributes.skip(1).filter_map(|(start, part)| {
        let equals = part.iter().position(|b| *b == b'=')?;
        let (name, value) = (&part[..equals], &part[equals + 1..]);
        let blank = value.len() - value.trim_ascii_start().len();
        let from = start + equals + 1 + blank;
        name.trim_ascii()
            .eq_ignore_ascii_case(b"domain")
            .then(|| from..from + value.trim_ascii().len())
    })
}

/// Report whether a cookie is for a domain above the host. Of several `Domain` attributes browsers
/// use the last and other programs the first, so one is enough.
fn reaches_beyond(cookie: &[u8], host: &str) -> bool {
    domains(cookie).any(|domain| is_above(&cookie[domain], host))
}

/// Report whether a `Domain` is above the host, however it is spelt. A value that is no plain name
/// may become one in a browser (`%2e`, letters of other scripts), so that counts as well.
fn is_above(domain: &[u8], host: &str) -> bool {
    let domain = domain
        .strip_prefix(b"\"")
        .map_or(domain, |rest| rest.strip_suffix(b"\"").unwrap_or(rest));
    let Some(domain) = std::str::from_utf8(domain.trim_ascii()).ok() else {
        return true;
    };
    let domain = domain.trim_matches('.').to_ascii_lowercase();
    // The root domain is no domain.
    if domain.is_empty() {
        return false;
    }
    if !domain.bytes().all(is_plain) {
        return true;
    }
    host.strip_suffix(&*domain)
        .is_some_and(|rest| rest.ends_with('.'))
}

/// Report whether a byte is a character of a host name or address.
fn is_plain(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"-._:[]".contains(&b)
}

/// Obsolete field (RFC 6965), which some programs still read.
const SET_COOKIE2: HeaderName = HeaderName::from_static("set-cookie2");

#[cfg(test)]
mod tests {
    use ::http::HeaderValue;

    use super::*;

    fn passes(cookie: &[u8]) -> bool {
        !reaches_beyond(cookie, "blog.tunnel.example.com")
    }

    #[test]
    fn a_cookie_for_a_parent_domain_is_recognised_in_every_spelling() {
        for domain in [
            "tunnel.example.com",
            ".tunnel.example.com",
            "..tunnel.example.com",
            "TUNNEL.Example.com",
            "tunnel.example.com.",
            " tunnel.example.com ",
            "\"tunnel.example.com\"",
            "\" .tunnel.example.com\"",
            "example.com",
            "com",
            "tunnel%2eexample.com",
            "ｔunnel.example.com",
            "tunnel.example.com\t",
            "tunnel.example.com/",
        ] {
            for cookie in [
                format!("a=1; Domain={domain}"),
                format!("__Secure-a=1;Secure;DOMAIN = {domain};Path=/"),
                format!("a=1; domain=blog.tunnel.example.com; domain={domain}"),
                format!("a=1; domain={domain}; domain="),
            ] {
                assert!(!passes(cookie.as_bytes()), "{cookie}");
            }
        }
        assert!(!passes(b"a=1; domain=\xff.com"));
    }

    #[test]
    fn a_cookie_of_the_host_itself_or_of_somebody_else_passes() {
        for cookie in [
            "a=1",
            "a=1; Path=/; HttpOnly; SameSite=Lax",
            "a=1; Domain=blog.tunnel.example.com",
            "a=1; Domain=.Blog.tunnel.example.com",
            "a=1; Domain=",
            "a=1; Domain",
            "a=1; Domain=.",
            "a=1; Domain=shop.tunnel.example.com",
            "a=1; Domain=unnel.example.com",
            "a=1; Domain=elsewhere.example",
            "Domain=example.com",
            "a=domain=example.com; Path=x",
            "a=1; X-Domain=example.com",
            "",
        ] {
            assert!(passes(cookie.as_bytes()), "{cookie}");
        }
    }

    #[test]
    fn only_cookies_for_a_parent_domain_are_removed() {
        let mut fields = HeaderMap::new();
        for cookie in ["a=1", "b=2; domain=localhost", "c=3"] {
            fields.append(SET_COOKIE, HeaderValue::from_static(cookie));
        }
        fields.append(
            SET_COOKIE2,
            HeaderValue::from_static("d; Domain=.localhost"),
        );

        let removed = remove_parent_domain_cookies(&mut fields, "blog.localhost");

        let left: Vec<_> = fields.get_all(SET_COOKIE).iter().collect();
        assert_eq!(left, ["a=1", "c=3"]);
        assert!(!fields.contains_key(SET_COOKIE2));
        assert_eq!(removed, 2);
    }
}
