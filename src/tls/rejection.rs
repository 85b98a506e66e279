//! Explanations of why a certificate is not trusted, with advice.

use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, OtherError};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::Pin;

/// Explanation of why an edge was refused, or an upstream or proxy, for which only the reason applies.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct Rejection {
    /// Reason of the refusal.
    pub why: String,
    /// Next step for the user.
    pub advice: String,
}

/// Replace the error of a TLS handshake by the explanation that a verifier put into it.
pub fn explain(err: io::Error) -> io::Error {
    let cause = err.get_ref().and_then(|err| err.downcast_ref());
    let Some(rustls::Error::Other(OtherError(other))) = cause else {
        return err;
    };
    match other.downcast_ref::<Rejection>() {
        Some(rejection) => io::Error::new(err.kind(), rejection.clone()),
        None => err,
    }
}

impl Rejection {
    /// Explain why a certificate was not accepted for a name.
    pub fn new(
        err: &rustls::Error,
        leaf: &CertificateDer<'_>,
        name: &ServerName<'_>,
        authorities: &str,
        now: UnixTime,
    ) -> Self {
        let parsed = X509Certificate::from_der(leaf)
            .ok()
            .map(|(_, parsed)| parsed);
        let asked = name.to_str();
        match (err, parsed) {
            (rustls::Error::InvalidCertificate(reason), Some(leaf))
                if is_about_validity(reason) =>
            {
                Self::outside_validity(&leaf, now)
            }
            (rustls::Error::InvalidCertificate(reason), Some(leaf)) if is_about_name(reason) => {
                let names = names(&leaf);
                Self {
                    why: match names.is_empty() {
                        true => format!("its certificate has no names, so it is not valid for {asked}"),
                        false => format!("its certificate is for {}, not for {asked}", names.join(", ")),
                    },
                    advice: "give one of these names with --server, or the edge a certificate for this one \
                             (or pass --pin, for which names do not count)"
                        .into(),
                }
            }
            _ => {
                let pin = Pin::of(leaf).map(|pin| pin.to_string()).unwrap_or_default();
                Self {
                    why: format!(
                        "its certificate is not trusted for {asked} ({err}): expected one from {authorities}, found \
                         one with the pin {pin}"
                    ),
                    advice: "if it is your edge, pass its CA with --ca or this pin with --pin"
                        .into(),
                }
            }
        }
    }

    /// Wrap the explanation, so that it passes through a TLS handshake.
    pub fn into_error(self) -> rustls::Error {
        rustls::Error::Other(OtherError(Arc::new(self)))
    }

    /// Explain that another key was expected.
    pub fn by_pin(expected: &[Pin], found: Pin) -> Self {
        let expected: Vec<_> = expected.iter().map(Pin::to_string).collect();
        Self {
            why: format!("wrong pin: expected {}, found {found}", expected.join(" or ")),
            advice: "either the edge has a new key (then copy the pin that `qtunnel serve` prints) or something \
                     intercepts the connection"
                .into(),
        }
    }

    fn outside_validity(leaf: &X509Certificate<'_>, now: UnixTime) -> Self {
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        let (from, to) = (
            leaf.validity.not_before.timestamp(),
            leaf.validity.not_after.timestamp(),
        );
        let whose = match (now < from, now > to) {
            (true, _) => "its certificate is not valid yet",
            (_, true) => "its certificate has expired",
            // It is another one of the chain: an authority's.
            _ => "a certificate that vouches for its own has expired or is not valid yet",
        };
        Self {
            why: format!(
                "{whose}: it is valid from {} to {}, and by this machine's clock it is {}",
                date(from),
                date(to),
                date(now)
            ),
            advice: "set this machine's clock if it is wrong; otherwise renew the edge's certificate and reload it"
                .into(),
        }
    }
}

fn is_about_validity(reason: &CertificateError) -> bool {
    matches!(
        reason,
        CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. }
    )
}

fn is_about_name(reason: &CertificateError) -> bool {
    matches!(
        reason,
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }
    )
}

/// Return the first names of a certificate, printable ones only, since a stranger may have put in
/// anything.
fn names(leaf: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(extension)) = leaf.subject_alternative_name() else {
        return Vec::new();
    };
    let names = extension.value.general_names.iter();
    let names = names.filter_map(|name| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => match *bytes {
            [a, b, c, d] => Some(std::net::Ipv4Addr::new(*a, *b, *c, *d).to_string()),
            bytes => <[u8; 16]>::try_from(bytes)
                .ok()
                .map(|bytes| std::net::Ipv6Addr::from(bytes).to_string()),
        },
        _ => None,
    });
    let is_printable = |name: &String| {
        name.len() <= MAX_DNS_NAME && name.bytes().all(|byte| byte.is_ascii_graphic())
    };
    names.filter(is_printable).take(MAX_SHOWN_NAMES).collect()
}

fn date(seconds: i64) -> String {
    let seconds = u64::try_from(seconds).unwrap_or(0).min(LAST_SECOND);
    let time: SystemTime = UNIX_EPOCH + Duration::from_secs(seconds);
    humantime::format_rfc3339_seconds(time).to_string()
}

/// Most names to show.
const MAX_SHOWN_NAMES: usize = 8;

/// Longest DNS name, in bytes (RFC 1035 §2.3.4).
const MAX_DNS_NAME: usize = 253;

/// End of the year 9999, after which dates have no usual format, in Unix seconds.
const LAST_SECOND: u64 = 253_402_300_799;

#[cfg(test)]
mod tests {
    use super::*;

    fn explain(
        reason: CertificateError,
        now: u64,
        change: impl FnOnce(&mut rcgen::CertificateParams),
    ) -> Rejection {
        let names = vec!["edge.example".to_owned(), "*.edge.example".to_owned()];
        let mut params = rcgen::CertificateParams::new(names).unwrap();
        params.not_before = rcgen::date_time_ymd(2025, 1, 1);
        params.not_after = rcgen::date_time_ymd(2025, 12, 31);
        change(&mut params);
        let key = rcgen::KeyPair::generate().unwrap();
        let leaf = params.self_signed(&key).unwrap();
        Rejection::new(
            &rustls::Error::InvalidCertificate(reason),
            leaf.der(),
            &ServerName::try_from("other.example").unwrap(),
            "somebody",
            UnixTime::since_unix_epoch(Duration::from_secs(now)),
        )
    }

    fn explain_expired() -> Rejection {
        explain(CertificateError::Expired, 1_800_000_000, |_| {})
    }

    #[test]
    fn a_clock_that_is_off_and_an_expired_certificate_are_named_with_the_dates() {
        for (reason, now, says) in [
            (CertificateError::Expired, 1_800_000_000, "expired"),
            (
                CertificateError::NotValidYet,
                1_000_000_000,
                "not valid yet",
            ),
        ] {
            let told = explain(reason, now, |_| {});

            for text in [
                says,
                "2025-01-01T00:00:00Z",
                "2025-12-31T00:00:00Z",
                &date(now as i64),
            ] {
                assert!(told.why.contains(text), "{told:?}");
            }
            assert!(told.advice.contains("clock"), "{told:?}");
        }
    }

    #[test]
    fn the_words_are_found_in_what_a_handshake_fails_with() {
        let told = explain_expired();
        let failed = io::Error::new(io::ErrorKind::InvalidData, told.clone().into_error());

        assert_eq!(super::explain(failed).to_string(), told.why);
        let other = io::Error::from(io::ErrorKind::UnexpectedEof);
        assert_eq!(super::explain(other).kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_certificate_for_another_name_is_named_with_its_names() {
        let told = explain(CertificateError::NotValidForName, 1_750_000_000, |_| {});

        assert!(
            told.why
                .contains("for edge.example, *.edge.example, not for other.example"),
            "{told:?}"
        );
        assert!(told.advice.contains("--server"), "{told:?}");
    }
}
