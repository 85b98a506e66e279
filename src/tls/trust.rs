//! Verification of the edge's certificate by the agent.

use std::path::Path;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::Pin;
use super::rejection::Rejection;
use crate::text_file::read_pem;

/// Certificates that an agent accepts. There is no way to accept any.
#[derive(Debug, Clone, Default)]
pub enum Trust {
    /// Those of the certificate authorities in this machine's store.
    #[default]
    System,
    /// Those of the authorities in a PEM file, and no others.
    Ca(PathBuf),
    /// Those with one of these keys, whoever signed them.
    Pins(Vec<Pin>),
}

impl Trust {
    /// Build a TLS client configuration, and the place where it records why it refused an edge.
    ///
    /// # Errors
    /// [`TrustError`] if the CA file cannot be used, or the machine has no certificate store.
    pub(crate) fn client_config(
        &self,
        alpn: &[&[u8]],
    ) -> Result<(ClientConfig, LastRejection), TrustError> {
        let rejection = LastRejection::default();
        let check = match self {
            Self::System => CertificateCheck::system()?,
            Self::Ca(path) => CertificateCheck::WebPki {
                authorities: format!("an authority in {}", path.display()),
                verifier: verifier(roots_from(path)?)?,
            },
            Self::Pins(pins) => CertificateCheck::Pins(pins.clone()),
        };
        let verifier = Verifier {
            check,
            rejection: Some(rejection.clone()),
        };
        let mut config = ClientConfig::builder_with_provider(super::provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("the provider has suites for TLS 1.3")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        Ok((config, rejection))
    }
}

/// Build a client configuration for `https://` upstreams: verified like a browser does, or not at
/// all where the user wrote `https+insecure://`.
///
/// # Errors
/// [`TrustError`] if the machine has no certificate store.
pub fn upstream_config(verify: bool, alpn: &[&[u8]]) -> Result<ClientConfig, TrustError> {
    let check = match verify {
        true => CertificateCheck::system()?,
        false => CertificateCheck::Anything,
    };
    Ok(checking(check, alpn))
}

/// Build a client configuration for proxies with TLS: verified like a browser does. Few agents use
/// one, so the machine's certificate store, which takes more memory than the rest of an agent, is
/// loaded only at the first handshake.
pub fn proxy_config() -> ClientConfig {
    checking(
        CertificateCheck::SystemLater(OnceLock::new()),
        &[b"http/1.1"],
    )
}

fn checking(check: CertificateCheck, alpn: &[&[u8]]) -> ClientConfig {
    let verifier = Verifier {
        check,
        rejection: None,
    };
    let mut config = ClientConfig::builder_with_provider(super::provider())
        .with_safe_default_protocol_versions()
        .expect("the provider has suites for both versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    config
}

/// Build a verifier from this machine's certificate store.
pub(crate) fn system_verifier() -> Result<Arc<WebPkiServerVerifier>, TrustError> {
    verifier(system_roots()?)
}

fn system_roots() -> Result<RootCertStore, TrustError> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        Err(TrustError::NoSystemRoots)
    } else {
        Ok(roots)
    }
}

fn roots_from(path: &Path) -> Result<RootCertStore, TrustError> {
    let unreadable = |source| match source {
        pem::Error::Io(source) => TrustError::Unreadable {
            path: path.to_path_buf(),
            source,
        },
        source => TrustError::NotPem {
            path: path.to_path_buf(),
            source,
        },
    };
    let mut roots = RootCertStore::empty();
    let text = read_pem(path).map_err(|err| unreadable(pem::Error::Io(err)))?;
    for certificate in CertificateDer::pem_slice_iter(text.as_bytes()) {
        roots
            .add(certificate.map_err(unreadable)?)
            .map_err(|source| TrustError::Invalid {
                path: path.to_path_buf(),
                source,
            })?;
    }
    if roots.is_empty() {
        return Err(TrustError::Empty {
            path: path.to_path_buf(),
        });
    }
    Ok(roots)
}

fn verifier(roots: RootCertStore) -> Result<Arc<WebPkiServerVerifier>, TrustError> {
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), super::provider())
        .build()
        .map_err(|_| TrustError::NoSystemRoots)
}

/// Record of why the last edge was refused, in words that QUIC's error codes cannot carry.
#[derive(Debug, Clone, Default)]
pub struct LastRejection(Arc<Mutex<Option<Rejection>>>);

impl LastRejection {
    /// Take what was recorded since the previous call.
    pub fn take(&self) -> Option<Rejection> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn record(&self, why: Rejection) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
    }
}

/// Way of checking a certificate.
#[derive(Debug)]
enum CertificateCheck {
    WebPki {
        /// Description of the expected authorities.
        authorities: String,
        verifier: Arc<WebPkiServerVerifier>,
    },
    Pins(Vec<Pin>),
    /// This machine's certificate store, loaded at the first handshake; `None` inside if it has
    /// none.
    SystemLater(OnceLock<Option<Arc<WebPkiServerVerifier>>>),
    Anything,
}

impl CertificateCheck {
    fn system() -> Result<Self, TrustError> {
        Ok(Self::WebPki {
            authorities: SYSTEM_AUTHORITIES.into(),
            verifier: system_verifier()?,
        })
    }
}

/// Certificate verifier that records why it refused one.
#[derive(Debug)]
struct Verifier {
    check: CertificateCheck,
    /// Record of the reason; without one, the error itself carries it.
    rejection: Option<LastRejection>,
}

impl Verifier {
    fn reject(&self, err: rustls::Error, why: Rejection) -> rustls::Error {
        match &self.rejection {
            Some(rejection) => {
                rejection.record(why);
                err
            }
            None => why.into_error(),
        }
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match &self.check {
            CertificateCheck::Anything => Ok(ServerCertVerified::assertion()),
            CertificateCheck::SystemLater(verifier) => {
                match verifier.get_or_init(|| system_verifier().ok()) {
                    Some(verifier) => verifier
                        .verify_server_cert(leaf, intermediates, name, ocsp, now)
                        .map_err(|err| {
                            let why = Rejection::new(&err, leaf, name, SYSTEM_AUTHORITIES, now);
                            self.reject(err, why)
                        }),
                    None => Err(rustls::Error::General(
                        TrustError::NoSystemRoots.to_string(),
                    )),
                }
            }
            CertificateCheck::WebPki {
                authorities,
                verifier,
            } => verifier
                .verify_server_cert(leaf, intermediates, name, ocsp, now)
                .map_err(|err| {
                    let why = Rejection::new(&err, leaf, name, authorities, now);
                    self.reject(err, why)
                }),
            CertificateCheck::Pins(pins) => {
                let found = Pin::of(leaf)?;
                if pins.contains(&found) {
                    return Ok(ServerCertVerified::assertion());
                }
                let err = rustls::CertificateError::ApplicationVerificationFailure.into();
                Err(self.reject(err, Rejection::by_pin(pins, found)))
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &super::provider().signature_verification_algorithms;
        verify_tls12_signature(message, leaf, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &super::provider().signature_verification_algorithms;
        verify_tls13_signature(message, leaf, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        super::provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// Description of the authorities that are trusted by default.
const SYSTEM_AUTHORITIES: &str = "an authority that this machine trusts";

/// Failure to use the configured trust.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The CA file cannot be read.
    #[error("cannot read the CA file {}", path.display())]
    Unreadable {
        /// Path of the file.
        path: PathBuf,
        /// Error of the system.
        source: std::io::Error,
    },
    /// The CA file is not PEM.
    #[error("cannot read the CA file {} as PEM", path.display())]
    NotPem {
        /// Path of the file.
        path: PathBuf,
        /// Error of the parser.
        source: pem::Error,
    },
    /// A certificate in the CA file is invalid.
    #[error("the CA file {} holds a certificate that cannot be used", path.display())]
    Invalid {
        /// Path of the file.
        path: PathBuf,
        /// Error of rustls.
        source: rustls::Error,
    },
    /// The CA file holds no certificate.
    #[error("the CA file {} holds no certificate", path.display())]
    Empty {
        /// Path of the file.
        path: PathBuf,
    },
    /// This machine has no certificate store.
    #[error(
        "this machine has no certificate store (install ca-certificates, or use --ca or --pin)"
    )]
    NoSystemRoots,
}
