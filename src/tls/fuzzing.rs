//! What must hold for any bytes that an edge shows as its certificate.

use rustls::CertificateError;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};

use super::Pin;
use super::distrust::Distrusted;

/// Say why a certificate is not trusted: nothing of it reaches a terminal as it is.
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
        let told = Distrusted::new(&err, &leaf, &name, "somebody", now);
        assert!(!told.why.contains(char::is_control), "{told:?}");
    }
    if let Ok(pin) = Pin::of(&leaf) {
        assert_eq!(pin.to_string().parse::<Pin>().ok(), Some(pin));
    }
}
