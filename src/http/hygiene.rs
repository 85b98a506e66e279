//! Hop-by-hop fields, and fields that may not be trailers.
//!
//! Both ends remove them from what they receive, before they add fields of their own. Fields that
//! describe the visitor are left to `forwarded`.

use ::http::header::{
    self, CONNECTION, COOKIE, HeaderMap, HeaderName, HeaderValue, PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION, TE, TRANSFER_ENCODING, UPGRADE,
};

use super::forwarded;
use crate::proto::{BodyLength, decimal};

/// Meaning of the removed hop-by-hop fields, for the next hop to state again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct HopByHop {
    /// Set if the sender accepts trailers (`TE: trailers`). gRPC servers refuse requests without
    /// it.
    pub(crate) takes_trailers: bool,
    /// Protocols of an `Upgrade` field that `Connection` confirms (RFC 9110 §7.8).
    pub(crate) upgrade: Option<HeaderValue>,
}

/// Remove the hop-by-hop fields (RFC 9110 §7.6.1) and return their meaning.
///
/// These are the fields of RFC 2616 §13.5.1, `Proxy-Connection` and `HTTP2-Settings`, and those
/// that `Connection` names. `Trailer` stays: it announces trailers, both ends keep these, and hyper
/// writes only the announced ones in HTTP/1.1.
///
/// A visitor may name a field in `Connection` to make us drop it, although the upstream relies on
/// it (a cookie, a length, an authorization that a proxy added). Like Envoy, and unlike RFC 9110,
/// `Connection` therefore has no effect on the fields that are meant for every recipient.
pub(crate) fn strip_hop_by_hop(headers: &mut HeaderMap) -> HopByHop {
    // Most messages have none of them: one pass over the fields instead of a lookup for each.
    if !headers.keys().any(|name| HOP_BY_HOP.contains(name)) {
        return HopByHop::default();
    }
    let mut hop = HopByHop {
        takes_trailers: takes_trailers(headers),
        upgrade: None,
    };
    let mut upgrades = false;
    let mut named = Vec::new();
    for option in headers
        .get_all(CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|b| *b == b','))
    {
        let option = option.trim_ascii();
        if option.eq_ignore_ascii_case(b"upgrade") {
            upgrades = true;
        } else if !option.eq_ignore_ascii_case(b"close")
            && !option.eq_ignore_ascii_case(b"keep-alive")
        {
            named.extend(
                HeaderName::from_bytes(option)
                    .ok()
                    .filter(|name| !is_end_to_end(name)),
            );
        }
    }
    for name in named {
        headers.remove(name);
    }
    if upgrades {
        hop.upgrade = list(headers, &UPGRADE);
    }
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
    hop
}

/// Remove the trailer fields that a recipient would have needed before the body (RFC 9110 §6.5.1):
/// framing, routing, authentication, conditions, the content's format, and hop-by-hop fields.
///
/// A recipient may merge trailers into the header; what we check or set there must not return here.
pub(crate) fn sanitize_trailers(trailers: &mut HeaderMap) {
    strip_hop_by_hop(trailers);
    forwarded::remove(trailers);
    let forbidden: Vec<_> = trailers
        .keys()
        .filter(|name| is_forbidden_trailer(name))
        .cloned()
        .collect();
    for name in forbidden {
        trailers.remove(name);
    }
}

/// Leave one correct `Content-Length`, or none. Where there is no body, it is the length that
/// another response would have (RFC 9110 §8.6); different ones are removed.
pub(crate) fn normalize_content_length(headers: &mut HeaderMap, body: BodyLength) {
    let length = match body {
        BodyLength::Known(length) => Some(length),
        BodyLength::Unknown => None,
        BodyLength::Empty => {
            let mut values = headers
                .get_all(header::CONTENT_LENGTH)
                .iter()
                .flat_map(|value| value.as_bytes().split(|b| *b == b','))
                .map(|value| decimal(value.trim_ascii()));
            let first = values.next().flatten();
            first.filter(|_| values.all(|value| value == first))
        }
    };
    match length {
        Some(length) => _ = headers.insert(header::CONTENT_LENGTH, length.into()),
        None => _ = headers.remove(header::CONTENT_LENGTH),
    }
}

/// Join the `Cookie` fields into which HTTP/2 splits one, as HTTP/1.1 requires (RFC 9113 §8.2.3).
pub(crate) fn join_cookies(headers: &mut HeaderMap) {
    let mut crumbs = headers.get_all(COOKIE).iter();
    let (Some(first), Some(second)) = (crumbs.next(), crumbs.next()) else {
        return;
    };
    let mut cookie = first.as_bytes().to_vec();
    for crumb in std::iter::once(second).chain(crumbs) {
        cookie.extend_from_slice(b"; ");
        cookie.extend_from_slice(crumb.as_bytes());
    }
    let cookie =
        HeaderValue::from_maybe_shared(bytes::Bytes::from(cookie)).expect("made of values");
    headers.insert(COOKIE, cookie);
}

/// Return a list field, its lines joined.
fn list(headers: &HeaderMap, name: &HeaderName) -> Option<HeaderValue> {
    let mut lines = headers.get_all(name).iter();
    let first = lines.next()?;
    let mut joined = None;
    for line in lines {
        let joined = joined.get_or_insert_with(|| first.as_bytes().to_vec());
        joined.extend_from_slice(b", ");
        joined.extend_from_slice(line.as_bytes());
    }
    Some(match joined {
        None => first.clone(),
        Some(joined) => {
            HeaderValue::from_maybe_shared(bytes::Bytes::from(joined)).expect("made of values")
        }
    })
}

fn takes_trailers(headers: &HeaderMap) -> bool {
    let codings = headers
        .get_all(TE)
        .iter()
        .flat_map(|value| value.as_bytes().split(|b| *b == b','));
    codings
        .into_iter()
        .any(|coding| coding.trim_ascii().eq_ignore_ascii_case(b"trailers"))
}

fn is_end_to_end(name: &HeaderName) -> bool {
    END_TO_END.contains(name) || forwarded::is_about_visitor(name)
}

fn is_forbidden_trailer(name: &HeaderName) -> bool {
    let text = name.as_str();
    FORBIDDEN_TRAILERS.contains(name)
        || text.starts_with("if-")
        // A name with underscores only serves those who read them as hyphens.
        || text.contains('_') && {
            let hyphened = HeaderName::try_from(text.replace('_', "-"));
            hyphened.is_ok_and(|name| FORBIDDEN_TRAILERS.contains(&name) || HOP_BY_HOP.contains(&name))
        }
}

/// Fields for one connection only.
const HOP_BY_HOP: [HeaderName; 9] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRANSFER_ENCODING,
    UPGRADE,
    HeaderName::from_static("http2-settings"),
];

/// Fields for every recipient, which `Connection` cannot remove.
const END_TO_END: [HeaderName; 16] = [
    header::AUTHORIZATION,
    header::CACHE_CONTROL,
    // RFC 8586 §2: without it loops go unnoticed.
    HeaderName::from_static("cdn-loop"),
    header::CONTENT_ENCODING,
    header::CONTENT_LENGTH,
    header::CONTENT_RANGE,
    header::CONTENT_TYPE,
    COOKIE,
    header::DATE,
    header::HOST,
    header::LOCATION,
    header::ORIGIN,
    header::REFERER,
    header::SET_COOKIE,
    header::TRAILER,
    header::WWW_AUTHENTICATE,
];

/// Fields that may not come after the body, besides the conditional `if-*`.
const FORBIDDEN_TRAILERS: [HeaderName; 14] = [
    header::AUTHORIZATION,
    header::CACHE_CONTROL,
    header::CONTENT_ENCODING,
    header::CONTENT_LENGTH,
    header::CONTENT_RANGE,
    header::CONTENT_TYPE,
    COOKIE,
    header::EXPECT,
    header::HOST,
    header::MAX_FORWARDS,
    header::RANGE,
    header::SET_COOKIE,
    header::TRAILER,
    header::WWW_AUTHENTICATE,
];

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    fn stripped(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = headers(fields);
        strip_hop_by_hop(&mut headers);
        headers
    }

    #[test]
    fn hop_by_hop_fields_are_removed() {
        let left = stripped(&[
            ("connection", "keep-alive"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("proxy-authenticate", "Basic"),
            ("proxy-authorization", "Basic eA=="),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("http2-settings", "AAMAAABk"),
            ("trailer", "expires"),
            ("accept", "*/*"),
        ]);

        assert_eq!(left, headers(&[("trailer", "expires"), ("accept", "*/*")]));
    }

    #[test]
    fn every_field_that_connection_names_is_removed() {
        let left = stripped(&[
            ("connection", "close, X-One ,,\tx-two"),
            ("connection", "X-Three, not a name"),
            ("x-one", "1"),
            ("x-one", "1 again"),
            ("x-two", "2"),
            ("x-three", "3"),
            ("x-four", "4"),
        ]);

        assert_eq!(left, headers(&[("x-four", "4")]));
    }

    #[test]
    fn connection_cannot_remove_what_every_recipient_needs() {
        let kept = [
            ("host", "a.example"),
            ("content-length", "5"),
            ("cookie", "a=1"),
            ("authorization", "Bearer x"),
            ("x-forwarded-for", "192.0.2.1"),
            ("x-real-ip", "192.0.2.1"),
        ];
        let mut all = kept.to_vec();
        all.push((
            "connection",
            "Host, content-length, cookie, authorization, x-forwarded-for, x-real-ip",
        ));

        assert_eq!(stripped(&all), headers(&kept));
    }

    #[test]
    fn the_meaning_of_hop_by_hop_fields_is_returned() {
        let mut upgrade = headers(&[
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "websocket"),
            ("te", "gzip, Trailers"),
        ]);
        let mut unconfirmed = headers(&[("upgrade", "websocket"), ("te", "trailers;q=0.5")]);

        let hop = strip_hop_by_hop(&mut upgrade);
        assert_eq!(
            hop,
            HopByHop {
                takes_trailers: true,
                upgrade: Some(HeaderValue::from_static("websocket"))
            }
        );
        assert_eq!(strip_hop_by_hop(&mut unconfirmed), HopByHop::default());
    }

    #[test]
    fn one_correct_length_is_left_or_none() {
        let with = |values: &[&'static str], body| {
            let mut headers: HeaderMap = values
                .iter()
                .map(|value| (header::CONTENT_LENGTH, HeaderValue::from_static(value)))
                .collect();
            normalize_content_length(&mut headers, body);
            let left = headers.get_all(header::CONTENT_LENGTH).iter();
            left.map(|value| value.to_str().unwrap().to_owned())
                .collect::<Vec<_>>()
        };

        assert_eq!(with(&["5", "6"], BodyLength::Known(7)), ["7"]);
        assert!(with(&["5"], BodyLength::Unknown).is_empty());
        for (values, left) in [
            (&["5"][..], Some("5")),
            (&["5", "5"], Some("5")),
            (&["5, 5"], Some("5")),
            (&["5", "6"], None),
            (&["5, 6"], None),
            (&["-1"], None),
            (&[""], None),
            (&[], None),
        ] {
            let found = with(values, BodyLength::Empty);
            assert_eq!(found, left.into_iter().collect::<Vec<_>>(), "{values:?}");
        }
    }

    #[test]
    fn trailers_keep_only_what_may_come_late() {
        let mut trailers = headers(&[
            ("grpc-status", "0"),
            ("expires", "0"),
            ("x-checksum", "1"),
            ("transfer-encoding", "chunked"),
            ("content-length", "5"),
            ("content_length", "5"),
            ("host", "b.example"),
            ("authorization", "Basic eA=="),
            ("set-cookie", "a=1"),
            ("if-match", "x"),
            ("x-forwarded-for", "192.0.2.1"),
            ("connection", "x-late"),
            ("x-late", "1"),
        ]);

        sanitize_trailers(&mut trailers);

        assert_eq!(
            trailers,
            headers(&[("grpc-status", "0"), ("expires", "0"), ("x-checksum", "1")])
        );
    }

    #[test]
    fn cookie_crumbs_become_one_field() {
        let mut crumbs = headers(&[("cookie", "a=1"), ("cookie", "b=2"), ("cookie", "c=3")]);
        let mut none = headers(&[("accept", "*/*")]);

        join_cookies(&mut crumbs);
        join_cookies(&mut none);

        assert_eq!(crumbs, headers(&[("cookie", "a=1; b=2; c=3")]));
        assert_eq!(none, headers(&[("accept", "*/*")]));
    }
}
