//! Certificates issued per requested name, where a wildcard is not accepted.
//!
//! OpenSSL, gRPC and browsers accept no wildcard directly below a top-level name: with
//! `*.localhost` none of them would accept `blog.localhost`.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::pki_types::CertificateDer;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

/// Resolver of names directly below a domain to certificates of their own.
pub struct PerName {
    /// Certificate for every other name.
    default: Arc<CertifiedKey>,
    domain: String,
    issue: Box<Issue>,
    issued: Mutex<HashMap<String, Arc<CertifiedKey>>>,
}

type Issue = dyn Fn(&str) -> Option<Vec<CertificateDer<'static>>> + Send + Sync;

impl PerName {
    /// Present the key of `default`, with chains that `issue` makes for names directly below
    /// `domain`.
    pub fn new(
        default: Arc<CertifiedKey>,
        domain: String,
        issue: impl Fn(&str) -> Option<Vec<CertificateDer<'static>>> + Send + Sync + 'static,
    ) -> Self {
        Self {
            default,
            domain,
            issue: Box::new(issue),
            issued: Mutex::default(),
        }
    }

    fn of(&self, name: &str) -> Option<Arc<CertifiedKey>> {
        let name = name.to_ascii_lowercase();
        let label = name.strip_suffix(&self.domain)?.strip_suffix('.')?;
        if label.is_empty() || label.contains('.') {
            return None;
        }
        let mut issued = self.issued.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(key) = issued.get(&name) {
            return Some(key.clone());
        }
        let chain = (self.issue)(&name)?;
        let key = Arc::new(CertifiedKey::new(chain, self.default.key.clone()));
        if issued.len() >= MAX_CACHED_NAMES {
            issued.clear();
        }
        issued.insert(name, key.clone());
        Some(key)
    }
}

impl ResolvesServerCert for PerName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let own = hello.server_name().and_then(|name| self.of(name));
        Some(own.unwrap_or_else(|| self.default.clone()))
    }
}

impl fmt::Debug for PerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PerName")
            .field("domain", &self.domain)
            .finish_non_exhaustive()
    }
}

/// Most cached certificates, about 1 KiB each: visitors may ask for any name, and issuing
/// one again costs less than the handshake that it is for.
const MAX_CACHED_NAMES: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::StateDir;
    use crate::tls::LocalCa;

    #[test]
    fn only_names_directly_below_the_domain_get_a_certificate_of_their_own() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::open(directory.path()).unwrap();
        let default = LocalCa::open(&state).unwrap().issue("lab.test").unwrap();
        let chain = |_: &str| Some(Vec::new());
        let names = PerName::new(default.key, "localhost".into(), chain);

        for name in ["blog.localhost", "BLOG.localhost"] {
            assert!(names.of(name).is_some(), "{name}");
        }
        for name in [
            "localhost",
            ".localhost",
            "a.b.localhost",
            "bloglocalhost",
            "example.com",
        ] {
            assert!(names.of(name).is_none(), "{name}");
        }
        for number in 0..3 * MAX_CACHED_NAMES {
            names.of(&format!("{number}.localhost"));
        }
        assert!(names.issued.lock().unwrap().len() <= MAX_CACHED_NAMES);
    }
}
