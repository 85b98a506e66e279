//! How the agent decides that it talks to the right edge.

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
use super::distrust::Distrusted;
use crate::text_file::read_pem;

/// What an agent accepts as proof. There is no way to accept anything.
#[derive(Debug, Clone, Default)]
pub enum Trust {
    /// The certificate authorities that this machine trusts.
    #[default]
    System,
    /// Those in a PEM file, and no others.
    Ca(PathBuf),
    /// A certificate with one of these keys, whoever signed it.
    Pins(Vec<Pin>),
}

impl Trust {
    /// Make a TLS client configuration, and the place where it notes why it refused an edge.
    ///
    /// # Errors
    /// [`TrustError`] if the CA file cannot be used, or the machine has no certificate store.
    pub(crate) fn client_config(
        &self,
        alpn: &[&[u8]],
    ) -> Result<(ClientConfig, Distrust), TrustError> {
        let distrust = Distrust::default();
        let check = match self {
            Self::System => Check::system()?,
            Self::Ca(path) => Check::WebPki {
                authorities: format!("an authority in {}", path.display()),
                verifier: verifier(roots_from(path)?)?,
            },
            Self::Pins(pins) => Check::Pins(pins.clone()),
        };
        let verifier = Verifier {
            check,
            distrust: Some(distrust.clone()),
        };
        let mut config = ClientConfig::builder_with_provider(super::provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("the provider has suites for TLS 1.3")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        Ok((config, distrust))
    }
}

/// Make a client configuration for `https://` upstreams: verified like a browser does, or not at
/// all where the user wrote `https+insecure://`.
///
/// # Errors
/// [`TrustError`] if the machine has no certificate store.
pub fn upstream_config(verify: bool, alpn: &[&[u8]]) -> Result<ClientConfig, TrustError> {
    let check = match verify {
        true => Check::system()?,
        false => Check::Anything,
    };
    Ok(checking(check, alpn))
}

/// Make a client configuration for proxies with TLS: verified like a browser does. Few agents meet one, so the
/// machine's certificate store, which takes more memory than all else of an agent, is only read then.
pub fn proxy_config() -> ClientConfig {
    checking(Check::SystemLater(OnceLock::new()), &[b"http/1.1"])
}

fn checking(check: Check, alpn: &[&[u8]]) -> ClientConfig {
    let verifier = Verifier {
        check,
        distrust: None,
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

/// Check certificates as this machine's certificate store says.
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

/// Why the last edge was refused, in words that QUIC's error codes cannot carry.
#[derive(Debug, Clone, Default)]
pub struct Distrust(Arc<Mutex<Option<Distrusted>>>);

impl Distrust {
    /// Take what was noted since the last time.
    pub fn take(&self) -> Option<Distrusted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn note(&self, why: Distrusted) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
    }
}

#[derive(Debug)]
enum Check {
    WebPki {
        /// Whose signature is expected, in words.
        authorities: String,
        verifier: Arc<WebPkiServerVerifier>,
    },
    Pins(Vec<Pin>),
    /// By the machine's certificate store, if it has one, which is read when it is needed.
    SystemLater(OnceLock<Option<Arc<WebPkiServerVerifier>>>),
    Anything,
}

impl Check {
    fn system() -> Result<Self, TrustError> {
        Ok(Self::WebPki {
            authorities: SYSTEM.into(),
            verifier: system_verifier()?,
        })
    }
}

#[derive(Debug)]
struct Verifier {
    check: Check,
    /// Where it is noted why the other end was refused. Without, the error carries the words.
    distrust: Option<Distrust>,
}

impl Verifier {
    fn refuse(&self, err: rustls::Error, why: Distrusted) -> rustls::Error {
        match &self.distrust {
            Some(distrust) => {
                distrust.note(why);
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
            Check::Anything => Ok(ServerCertVerified::assertion()),
            Check::SystemLater(verifier) => match verifier.get_or_init(|| system_verifier().ok()) {
                Some(verifier) => verifier
                    .verify_server_cert(leaf, intermediates, name, ocsp, now)
                    .map_err(|err| {
                        let why = Distrusted::new(&err, leaf, name, SYSTEM, now);
                        self.refuse(err, why)
                    }),
                None => Err(rustls::Error::General(
                    TrustError::NoSystemRoots.to_string(),
                )),
            },
            Check::WebPki {
                authorities,
                verifier,
            } => verifier
                .verify_server_cert(leaf, intermediates, name, ocsp, now)
                .map_err(|err| {
                    let why = Distrusted::new(&err, leaf, name, authorities, now);
                    self.refuse(err, why)
                }),
            Check::Pins(pins) => {
                let found = Pin::of(leaf)?;
                if pins.contains(&found) {
                    return Ok(ServerCertVerified::assertion());
                }
                let err = rustls::CertificateError::ApplicationVerificationFailure.into();
                Err(self.refuse(err, Distrusted::by_pin(pins, found)))
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

/// Whose signature is expected by default, in words.
const SYSTEM: &str = "an authority that this machine trusts";

/// What an agent was told to trust cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The CA file cannot be read.
    #[error("cannot read the CA file {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        source: std::io::Error,
    },
    /// The CA file is not PEM.
    #[error("cannot read the CA file {} as PEM", path.display())]
    NotPem {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        source: pem::Error,
    },
    /// A certificate in the CA file is not one.
    #[error("the CA file {} holds a certificate that cannot be used", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        source: rustls::Error,
    },
    /// The CA file holds no certificate.
    #[error("the CA file {} holds no certificate", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// This machine has no certificate store.
    #[error(
        "this machine has no certificate store (install ca-certificates, or use --ca or --pin)"
    )]
    NoSystemRoots,
}
