//! Pins: hashes of public keys, for an edge whose certificate no public authority has signed.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use rustls::pki_types::CertificateDer;
use rustls::server::ParsedCertificate;

/// SHA-256 of a certificate's SubjectPublicKeyInfo (RFC 7469 §2.4), formatted as `sha256/…` in
/// base64. It outlives the certificate as long as the key stays.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Pin([u8; 32]);

impl Pin {
    /// Compute the pin of a certificate.
    ///
    /// # Errors
    /// If it is not an X.509 certificate.
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Self, rustls::Error> {
        let key = ParsedCertificate::try_from(certificate)?.subject_public_key_info();
        let mut pin = [0; 32];
        pin.copy_from_slice(digest(&SHA256, &key).as_ref());
        Ok(Self(pin))
    }
}

impl FromStr for Pin {
    type Err = PinError;

    fn from_str(text: &str) -> Result<Self, PinError> {
        let encoded = text
            .strip_prefix("sha256/")
            .or_else(|| text.strip_prefix("sha256//"))
            .ok_or(PinError)?;
        let bytes = STANDARD
            .decode(encoded)
            .or_else(|_| STANDARD_NO_PAD.decode(encoded))
            .or_else(|_| URL_SAFE_NO_PAD.decode(encoded))
            .map_err(|_| PinError)?;
        bytes.try_into().map(Self).map_err(|_| PinError)
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The URL-safe alphabet needs no quoting in any shell.
        write!(f, "sha256/{}", URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not a pin.
#[derive(Debug, thiserror::Error)]
#[error("a pin is `sha256/` and 32 bytes in base64, as `qtunnel serve` prints it")]
pub struct PinError;
