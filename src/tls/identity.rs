//! Identity of an edge: a certificate chain and its key, and the server configurations made of it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ResolvesServerCert;
use rustls::sign::{CertifiedKey, SingleCertAndKey};

use super::Pin;
use super::per_name::PerName;
use crate::text_file::read_pem;

/// Certificate chain and matching private key.
#[derive(Debug, Clone)]
pub struct Identity {
    pub(crate) key: Arc<CertifiedKey>,
    pin: Pin,
    resolver: Arc<dyn ResolvesServerCert>,
}

impl Identity {
    /// Load a chain (PEM, leaf first) and its key (PEM).
    ///
    /// # Errors
    /// [`IdentityError`] names the file and the problem.
    pub fn load(chain: &Path, key: &Path) -> Result<Self, IdentityError> {
        let as_error = |path: &Path, source| match source {
            pem::Error::Io(source) => IdentityError::Unreadable {
                path: path.into(),
                source,
            },
            source => IdentityError::NotPem {
                path: path.into(),
                source,
            },
        };
        let read = |path: &Path| read_pem(path).map_err(|err| as_error(path, pem::Error::Io(err)));
        let certificates = CertificateDer::pem_slice_iter(read(chain)?.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|err| as_error(chain, err))?;
        let private =
            PrivateKeyDer::from_pem_slice(read(key)?.as_bytes()).map_err(|err| match err {
                pem::Error::NoItemsFound => IdentityError::NoKey { path: key.into() },
                err => as_error(key, err),
            })?;
        Self::new(certificates, private).map_err(|err| match err {
            Unusable::Empty => IdentityError::NoCertificate { path: chain.into() },
            Unusable::Mismatch => IdentityError::Mismatch {
                chain: chain.into(),
                key: key.into(),
            },
            Unusable::Certificate(source) => IdentityError::Invalid {
                path: chain.into(),
                source,
            },
            Unusable::Key(source) => IdentityError::Invalid {
                path: key.into(),
                source,
            },
        })
    }

    /// Combine a chain and a key in memory.
    pub(crate) fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Self, Unusable> {
        let leaf = chain.first().ok_or(Unusable::Empty)?;
        let pin = Pin::of(leaf).map_err(Unusable::Certificate)?;
        let signer = super::provider()
            .key_provider
            .load_private_key(key)
            .map_err(Unusable::Key)?;
        let key = CertifiedKey::new(chain, signer);
        match key.keys_match() {
            Ok(()) => {
                let key = Arc::new(key);
                Ok(Self {
                    resolver: Arc::new(SingleCertAndKey::from(key.clone())),
                    key,
                    pin,
                })
            }
            Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::KeyMismatch)) => {
                Err(Unusable::Mismatch)
            }
            Err(err) => Err(Unusable::Key(err)),
        }
    }

    /// Present, for a name directly below `domain`, a chain that `issue` makes for that very name,
    /// with the same key.
    pub(crate) fn per_name(
        mut self,
        domain: String,
        issue: impl Fn(&str) -> Option<Vec<CertificateDer<'static>>> + Send + Sync + 'static,
    ) -> Self {
        self.resolver = Arc::new(PerName::new(self.key.clone(), domain, issue));
        self
    }

    /// Return the pin that an agent may use to recognise this identity.
    pub fn pin(&self) -> Pin {
        self.pin
    }

    /// Report whether this machine's certificate store trusts the identity under that name, so that
    /// agents most likely need no pin.
    pub fn is_publicly_trusted(&self, name: &str) -> bool {
        let (Some((leaf, rest)), Ok(name)) =
            (self.key.cert.split_first(), ServerName::try_from(name))
        else {
            return false;
        };
        super::trust::system_verifier().is_ok_and(|verifier| {
            verifier
                .verify_server_cert(leaf, rest, &name, &[], UnixTime::now())
                .is_ok()
        })
    }

    /// Build the configuration for visitors: TLS 1.2 and 1.3, HTTP/2 and HTTP/1.1 by ALPN.
    pub fn visitor_config(&self) -> ServerConfig {
        let mut config = ServerConfig::builder_with_provider(super::provider())
            .with_safe_default_protocol_versions()
            .expect("the provider has suites for both versions")
            .with_no_client_auth()
            .with_cert_resolver(self.resolver.clone());
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config
    }

    /// Build the configuration for agents: QUIC requires TLS 1.3.
    pub fn agent_config(&self, alpn: &[&[u8]]) -> ServerConfig {
        let mut config = ServerConfig::builder_with_provider(super::provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("the provider has suites for TLS 1.3")
            .with_no_client_auth()
            .with_cert_resolver(self.resolver.clone());
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        config
    }
}

/// Reason why a chain and a key do not make an identity.
#[derive(Debug)]
pub(crate) enum Unusable {
    Empty,
    Mismatch,
    Certificate(rustls::Error),
    Key(rustls::Error),
}

/// Failure to use a certificate or key file.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Unreadable {
        /// Path of the file.
        path: PathBuf,
        /// Error of the system.
        source: std::io::Error,
    },
    /// The file is not PEM.
    #[error("cannot read {} as PEM", path.display())]
    NotPem {
        /// Path of the file.
        path: PathBuf,
        /// Error of the parser.
        source: pem::Error,
    },
    /// The file holds no private key.
    #[error("{} holds no private key (expected `-----BEGIN PRIVATE KEY-----`)", path.display())]
    NoKey {
        /// Path of the file.
        path: PathBuf,
    },
    /// The file holds no certificate.
    #[error("{} holds no certificate (expected `-----BEGIN CERTIFICATE-----`)", path.display())]
    NoCertificate {
        /// Path of the file.
        path: PathBuf,
    },
    /// The key does not match the first certificate.
    #[error(
        "the key in {} does not belong to the first certificate in {} (the server's own certificate must come first)",
        key.display(), chain.display()
    )]
    Mismatch {
        /// Path of the certificates' file.
        chain: PathBuf,
        /// Path of the key's file.
        key: PathBuf,
    },
    /// The certificate or key is of an unsupported kind.
    #[error("cannot use the certificate or key in {}", path.display())]
    Invalid {
        /// Path of the file.
        path: PathBuf,
        /// Error of rustls.
        source: rustls::Error,
    },
}
