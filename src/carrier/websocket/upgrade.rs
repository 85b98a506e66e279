//! The HTTP part of a WebSocket at both ends: the upgrade request and its response.
//!
//! RFC 6455 §4 over HTTP/1.1 and RFC 8441 §5 over HTTP/2.

use aws_lc_rs::digest;
use base64::{Engine, engine::general_purpose::STANDARD};
use http::{
    HeaderMap, HeaderValue, Method, StatusCode,
    header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE},
    request::Parts,
};
use hyper::{ext::Protocol, upgrade::OnUpgrade};

/// A request is not a valid WebSocket upgrade.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UpgradeError {
    #[error("this path takes websocket upgrades only")]
    NoUpgrade,
    #[error("websocket version {VERSION} is required")]
    Version,
    #[error("the websocket key is missing or malformed")]
    Key,
}

impl UpgradeError {
    /// Return the status of the response; 426 requires the headers of [`required`](Self::required), too.
    pub fn status(self) -> StatusCode {
        match self {
            Self::NoUpgrade | Self::Version => StatusCode::UPGRADE_REQUIRED,
            Self::Key => StatusCode::BAD_REQUEST,
        }
    }

    /// Return the headers that tell the client which upgrade is accepted.
    pub fn required(self) -> HeaderMap {
        HeaderMap::from_iter([
            (CONNECTION, HeaderValue::from_static("Upgrade")),
            (UPGRADE, HeaderValue::from_static("websocket")),
            (SEC_WEBSOCKET_VERSION, HeaderValue::from_static(VERSION)),
        ])
    }
}

/// Answer a request for a WebSocket: return the status and the headers of the response, and the upgrade. Over
/// HTTP/1.1, the connection can be upgraded only if `expects_upgrade`.
///
/// # Errors
/// [`UpgradeError`] if it is not a valid one.
pub fn answer_upgrade(
    request: &mut Parts,
    expects_upgrade: bool,
) -> Result<(StatusCode, HeaderMap, OnUpgrade), UpgradeError> {
    let protocol = request.extensions.get::<Protocol>();
    let is_websocket = protocol.is_some_and(|protocol| protocol.as_str() == "websocket");
    let (status, headers) = if request.method == Method::CONNECT && is_websocket {
        check_extended_connect(&request.headers)?;
        (StatusCode::OK, HeaderMap::new())
    } else if expects_upgrade {
        let headers = upgrade_response(&request.headers)?;
        (StatusCode::SWITCHING_PROTOCOLS, headers)
    } else {
        return Err(UpgradeError::NoUpgrade);
    };
    let on_upgrade = request.extensions.remove::<OnUpgrade>();
    Ok((status, headers, on_upgrade.ok_or(UpgradeError::NoUpgrade)?))
}

/// Check an HTTP/1.1 upgrade request, and return the headers of the `101` response.
pub(crate) fn upgrade_response(request: &HeaderMap) -> Result<HeaderMap, UpgradeError> {
    if !has_token(request, UPGRADE, "websocket") || !has_token(request, CONNECTION, "upgrade") {
        return Err(UpgradeError::NoUpgrade);
    }
    check_version(request)?;
    let key = request.get(SEC_WEBSOCKET_KEY).ok_or(UpgradeError::Key)?;
    let decoded = STANDARD.decode(key).map_err(|_| UpgradeError::Key)?;
    if decoded.len() != 16 {
        return Err(UpgradeError::Key);
    }
    Ok(HeaderMap::from_iter([
        (CONNECTION, HeaderValue::from_static("Upgrade")),
        (UPGRADE, HeaderValue::from_static("websocket")),
        (SEC_WEBSOCKET_ACCEPT, accept(key.as_bytes())),
    ]))
}

/// Check an HTTP/2 extended CONNECT request whose `:protocol` is `websocket`. The response is a bare `200`.
fn check_extended_connect(request: &HeaderMap) -> Result<(), UpgradeError> {
    check_version(request)
}

/// Return the headers of an upgrade request, and the `Sec-WebSocket-Accept` value that proves that it was
/// understood.
///
/// # Errors
/// If the system has no randomness.
pub(crate) fn upgrade_request() -> Result<(HeaderMap, HeaderValue), aws_lc_rs::error::Unspecified> {
    let mut nonce = [0; 16];
    aws_lc_rs::rand::fill(&mut nonce)?;
    let key = STANDARD.encode(nonce);
    let accepted = accept(key.as_bytes());
    let key = HeaderValue::from_str(&key).expect("base64 is made of visible characters");
    let headers = HeaderMap::from_iter([
        (CONNECTION, HeaderValue::from_static("Upgrade")),
        (UPGRADE, HeaderValue::from_static("websocket")),
        (SEC_WEBSOCKET_VERSION, HeaderValue::from_static(VERSION)),
        (SEC_WEBSOCKET_KEY, key),
    ]);
    Ok((headers, accepted))
}

/// Compute the `Sec-WebSocket-Accept` value of a key (RFC 6455 §4.2.2).
fn accept(key: &[u8]) -> HeaderValue {
    const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
    let hash = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, &[key, GUID].concat());
    let accept = STANDARD.encode(hash);
    HeaderValue::from_str(&accept).expect("base64 is made of visible characters")
}

fn check_version(request: &HeaderMap) -> Result<(), UpgradeError> {
    match request.get(SEC_WEBSOCKET_VERSION) {
        Some(version) if version == VERSION => Ok(()),
        _ => Err(UpgradeError::Version),
    }
}

/// Report whether a comma-separated header contains this token, in any of its lines and ignoring case.
fn has_token(headers: &HeaderMap, name: http::HeaderName, token: &str) -> bool {
    let lines = headers.get_all(name).into_iter();
    lines
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(','))
        .any(|word| word.trim().eq_ignore_ascii_case(token))
}

/// The path on which every HTTP and HTTPS listener of an edge accepts WebSockets that carry packets.
pub const WEBSOCKET_PATH: &str = "/_qtunnel/connect";

/// The only version of the WebSocket protocol (RFC 6455 §4.1).
const VERSION: &str = "13";

#[cfg(test)]
mod tests {
    use super::*;

    fn request(change: impl FnOnce(&mut HeaderMap)) -> HeaderMap {
        let (mut headers, _) = upgrade_request().unwrap();
        change(&mut headers);
        headers
    }

    #[test]
    fn the_example_of_the_rfc_is_accepted() {
        let key = HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ==");
        let request = request(|headers| {
            headers.insert(SEC_WEBSOCKET_KEY, key);
            headers.insert(CONNECTION, HeaderValue::from_static("keep-alive, Upgrade"));
        });

        let answer = upgrade_response(&request).unwrap();

        assert_eq!(answer[SEC_WEBSOCKET_ACCEPT], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn the_answer_to_our_own_request_is_the_one_expected() {
        let (request, expected) = upgrade_request().unwrap();

        assert_eq!(
            upgrade_response(&request).unwrap()[SEC_WEBSOCKET_ACCEPT],
            expected
        );
    }

    #[test]
    fn the_response_to_an_invalid_upgrade_says_what_is_accepted() {
        let plain = upgrade_response(&HeaderMap::new()).unwrap_err();
        let old = HeaderValue::from_static("8");
        let version = request(|headers| _ = headers.insert(SEC_WEBSOCKET_VERSION, old));

        assert_eq!(plain, UpgradeError::NoUpgrade);
        assert_eq!(upgrade_response(&version), Err(UpgradeError::Version));
        assert_eq!(plain.status(), 426);
        assert_eq!(plain.required()[SEC_WEBSOCKET_VERSION], "13");
    }

    #[test]
    fn a_key_of_the_wrong_length_is_refused() {
        for key in ["", "dGhlIHNhbXBsZQ==", "not base64 at all!!!!!!"] {
            let key = HeaderValue::from_static(key);
            let request = request(|headers| _ = headers.insert(SEC_WEBSOCKET_KEY, key));

            assert_eq!(upgrade_response(&request), Err(UpgradeError::Key));
        }
    }
}
