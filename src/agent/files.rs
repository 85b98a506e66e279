//! A directory as an upstream.

use std::path::Path;

use ::http::{Request, Response, StatusCode};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use tower::ServiceExt;
use tower_http::services::ServeDir;

use super::upstream::{Service, UpstreamBody};

/// Serve the files below a directory: ranges, conditional requests and `index.html` as in
/// `tower-http`; nothing outside the directory, and nothing hidden.
pub fn service(directory: &Path) -> Service {
    let files = ServeDir::new(directory).append_index_html_on_directories(true);
    Service::new(move |request: Request<UpstreamBody>| {
        let files = files.clone();
        async move {
            if is_hidden(request.uri().path()) {
                let mut response = Response::new(page("404 not found\n"));
                *response.status_mut() = StatusCode::NOT_FOUND;
                return Ok(response);
            }
            match files.oneshot(request).await {
                Ok(response) => Ok(response.map(UpstreamBody::new)),
                Err(never) => match never {},
            }
        }
    })
}

fn page(text: &'static str) -> UpstreamBody {
    UpstreamBody::new(
        Full::new(Bytes::from_static(text.as_bytes())).map_err(|never| match never {}),
    )
}

/// Report whether a segment of the path begins with a dot, also where the dot is percent-encoded.
/// `/.well-known/` (RFC 8615) is made to be seen.
fn is_hidden(path: &str) -> bool {
    path.split(['/', '\\']).enumerate().any(|(at, segment)| {
        let decoded = segment.replace("%2e", ".").replace("%2E", ".");
        let separated = segment.to_ascii_lowercase();
        let smuggles =
            separated.contains("%2f") || separated.contains("%5c") || separated.contains("%00");
        smuggles || (decoded.starts_with('.') && !(at == 1 && decoded == ".well-known"))
    })
}

#[cfg(test)]
mod tests {
    use super::is_hidden;

    #[test]
    fn dotfiles_and_ways_around_are_hidden() {
        for path in [
            "/.git/config",
            "/a/.env",
            "/%2egit/config",
            "/../x",
            "/a/..%2f..%2fetc",
            "/a%5c..",
            "/x/.well-known/y",
        ] {
            assert!(is_hidden(path), "{path}");
        }
        for path in ["/", "/a.b/c.html", "/.well-known/security.txt", "/a..b"] {
            assert!(!is_hidden(path), "{path}");
        }
    }
}
