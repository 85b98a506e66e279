//! Properties that hold for any bytes that an edge presents as its certificate.

use rustls::CertificateError;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};

use super::Pin;
use super::rejection::Rejection;

/// Explain why a certificate is not trusted: the explanation contains no control characters of the certificate.
pub fn certificate(bytes: &[u8]) {
    let leaf = CertificateDer::from(bytes);
    let name = ServerName::try_from("edge.example").expect("a name");
    let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(1_750_000_000));
    for reason in [
        CertificateError::Expired,
        CertificateError::NotValidForName,
        CertificateError::UnknownIssuer,
    ] {
        let err = rustls::Error::InvalidCertificate(reason);
        let rejection = Rejection::new(&err, &leaf, &name, "somebody", now);
        assert!(!rejection.why.contains(char::is_control), "{rejection:?}");
    }
    if let Ok(pin) = Pin::of(&leaf) {
        assert_eq!(pin.to_string().parse::<Pin>().ok(), Some(pin));
    }
}
