//! Tunnels that lead to themselves: an upstream that is the edge under a tunnel's own name, directly or
//! through other edges, would get each request again and again.
//!
//! Requests to an upstream bear `CDN-Loop` (RFC 8586), which whoever passes them on leaves there. What it
//! says of a tunnel is random and known to its upstream alone: whoever sends it ends nobody's request but
//! its own. One that has come through other tunnels passes.

use ::http::header::{HeaderMap, HeaderName, HeaderValue};

/// The mark of one tunnel on the requests that it passes on.
#[derive(Debug, Clone)]
pub(crate) struct Mark(HeaderValue);

impl Mark {
    /// Make the mark of a new tunnel.
    pub(crate) fn random() -> Self {
        let mut id = [0; 8];
        aws_lc_rs::rand::fill(&mut id).expect("the operating system has random numbers");
        let id = format!("qtunnel-{:016x}", u64::from_be_bytes(id));
        Self(HeaderValue::try_from(id).expect("letters and digits"))
    }

    /// Report whether a request has come through this tunnel before.
    pub(crate) fn is_on(&self, fields: &HeaderMap) -> bool {
        let hops = fields.get_all(CDN_LOOP).iter();
        hops.flat_map(|hops| hops.as_bytes().split(|b| *b == b','))
            .any(|hop| {
                let id = hop.split(|b| *b == b';').next().unwrap_or(hop);
                id.trim_ascii() == self.0.as_bytes()
            })
    }

    /// Mark a request.
    pub(crate) fn put_on(&self, fields: &mut HeaderMap) {
        fields.append(CDN_LOOP, self.0.clone());
    }
}

const CDN_LOOP: HeaderName = HeaderName::from_static("cdn-loop");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_known_again_among_others_and_is_no_other_tunnels() {
        let (mark, other) = (Mark::random(), Mark::random());
        let mut fields = HeaderMap::new();
        fields.insert(CDN_LOOP, HeaderValue::from_static("cdn.example; a=\"b\""));
        assert!(!mark.is_on(&fields));

        mark.put_on(&mut fields);
        assert!(mark.is_on(&fields) && !other.is_on(&fields));

        let id = mark.0.to_str().expect("text");
        let joined = format!("cdn.example ,\t{id} ;x=1, other");
        fields.insert(CDN_LOOP, joined.parse().expect("a value"));
        assert!(mark.is_on(&fields));
        fields.insert(CDN_LOOP, format!("{id}0").parse().expect("a value"));
        assert!(!mark.is_on(&fields));
    }
}
