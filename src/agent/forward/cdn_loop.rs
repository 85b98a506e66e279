//! Detection of forwarding loops with `CDN-Loop` (RFC 8586): a tunnel whose upstream is the edge under the tunnel's
//! own name, directly or through other edges, would forward each request endlessly.
//!
//! Every request to an upstream carries the field, and intermediaries must not remove it. The tunnel's identifier in
//! it is random and known only to its upstream, so that somebody who sends it can end no request but their own.
//! Requests that came through other tunnels are forwarded.

use ::http::header::{HeaderMap, HeaderName, HeaderValue};

/// The identifier of one tunnel in `CDN-Loop` (`cdn-id` of RFC 8586 §2).
#[derive(Debug, Clone)]
pub(crate) struct CdnId(HeaderValue);

impl CdnId {
    /// Generate the identifier of a new tunnel.
    pub(crate) fn random() -> Self {
        let mut id = [0; 8];
        aws_lc_rs::rand::fill(&mut id).expect("the operating system has random numbers");
        let id = format!("qtunnel-{:016x}", u64::from_be_bytes(id));
        Self(HeaderValue::try_from(id).expect("letters and digits"))
    }

    /// Report whether a request has passed through this tunnel before.
    pub(crate) fn is_in(&self, fields: &HeaderMap) -> bool {
        let hops = fields.get_all(CDN_LOOP).iter();
        hops.flat_map(|hops| hops.as_bytes().split(|b| *b == b','))
            .any(|hop| {
                let id = hop.split(|b| *b == b';').next().unwrap_or(hop);
                id.trim_ascii() == self.0.as_bytes()
            })
    }

    /// Add the identifier to the fields of a request.
    pub(crate) fn append_to(&self, fields: &mut HeaderMap) {
        fields.append(CDN_LOOP, self.0.clone());
    }
}

const CDN_LOOP: HeaderName = HeaderName::from_static("cdn-loop");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_found_among_others_and_is_not_another_tunnels() {
        let (id, other) = (CdnId::random(), CdnId::random());
        let mut fields = HeaderMap::new();
        fields.insert(CDN_LOOP, HeaderValue::from_static("cdn.example; a=\"b\""));
        assert!(!id.is_in(&fields));

        id.append_to(&mut fields);
        assert!(id.is_in(&fields) && !other.is_in(&fields));

        let text = id.0.to_str().expect("text");
        let joined = format!("cdn.example ,\t{text} ;x=1, other");
        fields.insert(CDN_LOOP, joined.parse().expect("a value"));
        assert!(id.is_in(&fields));
        fields.insert(CDN_LOOP, format!("{text}0").parse().expect("a value"));
        assert!(!id.is_in(&fields));
    }
}
