//! The public URLs of tunnels.

use super::listeners::Addrs;
use crate::edge::config::EdgeConfig;

/// Builder of the public URLs of tunnels.
#[derive(Debug, Clone)]
pub struct Urls {
    domain: String,
    schemes: Vec<(&'static str, u16, u16)>,
}

impl Urls {
    /// Derive the URLs from the configured public URL, or else from the addresses that the edge
    /// listens on.
    pub fn new(config: &EdgeConfig, addrs: &Addrs) -> Self {
        if let Some(url) = &config.public_url {
            let (scheme, default_port) = match url.scheme_str() {
                Some("http") => ("http", 80),
                _ => ("https", 443),
            };
            return Self {
                domain: url.host().unwrap_or(&config.domain).to_owned(),
                schemes: vec![(scheme, url.port_u16().unwrap_or(default_port), default_port)],
            };
        }
        let domain = config.domain.as_str();
        let http = addrs.http.first().map(|addr| ("http", addr.port(), 80));
        let https = addrs.https.first().map(|addr| ("https", addr.port(), 443));
        // A local edge has plain HTTP first: no browser trusts the local CA on its own.
        let order = if domain == "localhost" {
            [http, https]
        } else {
            [https, http]
        };
        Self {
            domain: domain.to_owned(),
            schemes: order.into_iter().flatten().collect(),
        }
    }

    /// Return the URLs of a name, preferred first.
    pub fn of(&self, name: &str) -> Vec<String> {
        let url = |(scheme, port, default_port): &(&str, u16, u16)| match port == default_port {
            true => format!("{scheme}://{name}.{}", self.domain),
            false => format!("{scheme}://{name}.{}:{port}", self.domain),
        };
        self.schemes.iter().map(url).collect()
    }
}
