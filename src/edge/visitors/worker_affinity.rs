//! Worker affinity: a visitor's connection is served by the worker that has its tunnel's session.

use tokio::net::TcpStream;
use tokio_rustls::rustls::server::Acceptor;

use super::context::Visitors;

impl Visitors {
    /// Peek at the first bytes of a connection, and find the worker that has the session of the
    /// tunnel they name. This is an optimisation: any worker can serve any visitor.
    pub(crate) async fn worker_for(&self, tcp: &TcpStream, tls: bool) -> usize {
        let mut first = vec![0; PEEK_BYTES];
        let Ok(length) = tcp.peek(&mut first).await else {
            return 0;
        };
        let host = match tls {
            true => server_name(&first[..length]),
            false => host(&first[..length]),
        };
        let tunnel = host.and_then(|host| {
            let host = host.to_ascii_lowercase();
            self.waiting.present(self.name(&host)?)
        });
        tunnel.map_or(0, |tunnel| tunnel.worker)
    }
}

/// Return the server name of a ClientHello (RFC 6066 §3), if it has arrived.
pub(crate) fn server_name(mut first: &[u8]) -> Option<String> {
    let mut acceptor = Acceptor::default();
    acceptor.read_tls(&mut first).ok()?;
    let hello = acceptor.accept().ok()??;
    hello.client_hello().server_name().map(str::to_owned)
}

/// Return the host of a request, without its port, if it has arrived. It is validated later.
pub(crate) fn host(first: &[u8]) -> Option<String> {
    let mut fields = [httparse::EMPTY_HEADER; 100];
    let mut request = httparse::Request::new(&mut fields);
    // The fields that have arrived of an unfinished head are enough.
    let _ = request.parse(first);
    let mut fields = request.headers.iter();
    let host = fields.find(|field| field.name.eq_ignore_ascii_case("host"))?;
    let host = str::from_utf8(host.value).ok()?;
    Some(host.split(':').next().unwrap_or(host).to_owned())
}

/// Bytes to peek at: a ClientHello with a post-quantum key has 1.7 KB.
const PEEK_BYTES: usize = 4 << 10;

#[cfg(test)]
mod tests {
    use super::host;

    #[test]
    fn a_host_is_found_in_an_unfinished_head() {
        let first = b"GET / HTTP/1.1\r\nAccept: */*\r\nhOST: a.example.com:8080\r\nCookie: x";

        assert_eq!(host(first).as_deref(), Some("a.example.com"));
    }

    #[test]
    fn garbage_has_no_host() {
        assert_eq!(host(b"\x16\x03\x01"), None);
        assert_eq!(host(b""), None);
    }
}
