//! Where visitors reach a tunnel.

use super::listeners::Addrs;
use crate::edge::config::EdgeConfig;

/// How tunnels' public addresses are written.
#[derive(Debug, Clone)]
pub struct Urls {
    domain: String,
    schemes: Vec<(&'static str, u16, u16)>,
}

impl Urls {
    /// Derive them from where the edge listens, or from what it was told.
    pub fn new(config: &EdgeConfig, addrs: &Addrs) -> Self {
        if let Some(url) = &config.public_url {
            let (scheme, usual) = match url.scheme_str() {
                Some("http") => ("http", 80),
                _ => ("https", 443),
            };
            return Self {
                domain: url.host().unwrap_or(&config.domain).to_owned(),
                schemes: vec![(scheme, url.port_u16().unwrap_or(usual), usual)],
            };
        }
        let domain = config.domain.as_str();
        let http = addrs.http.first().map(|addr| ("http", addr.port(), 80));
        let https = addrs.https.first().map(|addr| ("https", addr.port(), 443));
        // On the local edge plain HTTP comes first: no browser trusts the local CA by itself.
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

    /// Return where visitors reach a name, best first.
    pub fn of(&self, name: &str) -> Vec<String> {
        let url = |(scheme, port, usual): &(&str, u16, u16)| match port == usual {
            true => format!("{scheme}://{name}.{}", self.domain),
            false => format!("{scheme}://{name}.{}:{port}", self.domain),
        };
        self.schemes.iter().map(url).collect()
    }
}
