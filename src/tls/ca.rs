//! Local CA, which signs the edge's certificate where no other is configured.

use std::net::IpAddr;
use std::path::PathBuf;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::Identity;
use super::identity::Unusable;
use crate::state::{StateDir, StateError};

/// A certificate authority of this machine's own, stored in the state directory as `ca.pem` and
/// `ca.key`. The edge's key (`edge.key`) is stored too, so that its pin never changes.
pub struct LocalCa {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    state: StateDir,
}

impl LocalCa {
    /// Load the CA, or create it at the first start.
    ///
    /// # Errors
    /// [`CaError`] if the files cannot be read, written or parsed.
    pub fn open(state: &StateDir) -> Result<Self, CaError> {
        let key = load_or_create_key(state, "ca.key")?;
        let pem = state.read_or_write("ca.pem", || {
            // Signing with a key that was just generated or loaded cannot fail for such parameters.
            params()
                .self_signed(&key)
                .map(|ca| ca.pem().into_bytes())
                .unwrap_or_default()
        })?;
        let certificate = CertificateDer::from_pem_slice(&pem).map_err(|_| CaError::Malformed {
            path: state.path("ca.pem"),
        })?;
        let issuer =
            Issuer::from_ca_cert_der(&certificate, key).map_err(|_| CaError::Malformed {
                path: state.path("ca.pem"),
            })?;
        Ok(Self {
            issuer,
            certificate,
            state: state.clone(),
        })
    }

    /// Return the path of the CA's certificate, for browsers and agents to trust.
    pub fn path(&self) -> PathBuf {
        self.state.path("ca.pem")
    }

    /// Issue the edge's certificate for `domain`, the names directly below it, and loopback.
    ///
    /// # Errors
    /// [`CaError`] if the key cannot be stored or the domain is invalid in a certificate.
    pub fn issue(self, domain: &str) -> Result<Identity, CaError> {
        let key = load_or_create_key(&self.state, "edge.key")?;
        let names = vec![
            domain.to_owned(),
            format!("*.{domain}"),
            "localhost".to_owned(),
        ];
        let leaf = self.sign(names, domain, &key)?;
        let chain = vec![leaf, self.certificate.clone()];
        let private = PrivateKeyDer::try_from(key.serialize_der()).expect("rcgen writes PKCS #8");
        let identity = Identity::new(chain, private).map_err(|err| match err {
            Unusable::Certificate(err) | Unusable::Key(err) => CaError::Unusable(err),
            Unusable::Empty | Unusable::Mismatch => {
                unreachable!("chain and key were made together")
            }
        })?;
        if domain.contains('.') {
            return Ok(identity);
        }
        let (domain, signer) = (domain.to_owned(), self);
        Ok(identity.per_name(domain.clone(), move |name| {
            let leaf = signer.sign(vec![name.to_owned()], &domain, &key).ok()?;
            Some(vec![leaf, signer.certificate.clone()])
        }))
    }

    fn sign(
        &self,
        names: Vec<String>,
        domain: &str,
        key: &KeyPair,
    ) -> Result<CertificateDer<'static>, CaError> {
        let mut params = CertificateParams::new(names)?;
        for ip in [
            IpAddr::from([127, 0, 0, 1]),
            IpAddr::from([0u16, 0, 0, 0, 0, 0, 0, 1]),
        ] {
            params.subject_alt_names.push(SanType::IpAddress(ip));
        }
        params.distinguished_name = distinguished(domain);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        validity(&mut params, LEAF_DAYS);
        Ok(params.signed_by(key, &self.issuer)?.into())
    }
}

/// Return the path of the certificate of the CA that an edge with this state directory uses. Edge
/// and agent of one user share the directory, so whichever starts first creates the CA.
///
/// # Errors
/// [`CaError`] if the files cannot be read, written or parsed.
pub fn local_ca(state: &StateDir) -> Result<PathBuf, CaError> {
    LocalCa::open(state).map(|ca| ca.path())
}

/// Load a key from the state directory, or generate and store it.
fn load_or_create_key(state: &StateDir, name: &str) -> Result<KeyPair, CaError> {
    let fresh = KeyPair::generate()?;
    let pem = state.read_or_write(name, || fresh.serialize_pem().into_bytes())?;
    let malformed = || CaError::Malformed {
        path: state.path(name),
    };
    let pem = std::str::from_utf8(&pem).map_err(|_| malformed())?;
    KeyPair::from_pem(pem).map_err(|_| malformed())
}

fn params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = distinguished("qtunnel local CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    validity(&mut params, CA_DAYS);
    params
}

fn distinguished(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

fn validity(params: &mut CertificateParams, days: i64) {
    let now = time::OffsetDateTime::now_utc();
    // A day back, for clocks that are slow.
    params.not_before = now - time::Duration::days(1);
    params.not_after = now + time::Duration::days(days);
}

/// Validity of the edge's certificate, in days: browsers refuse more than 398.
const LEAF_DAYS: i64 = 397;

/// Validity of the CA, in days: people install it by hand, which nobody wants to do every year.
const CA_DAYS: i64 = 3650;

/// Failure of the local CA.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// The state directory cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// A file is not one that this program wrote.
    #[error("{} is damaged: remove it to have a new one made", path.display())]
    Malformed {
        /// Path of the file.
        path: PathBuf,
    },
    /// A certificate could not be generated.
    #[error("cannot generate a certificate")]
    Generate(#[from] rcgen::Error),
    /// TLS does not accept the generated certificate.
    #[error("cannot use the generated certificate")]
    Unusable(#[source] rustls::Error),
}
