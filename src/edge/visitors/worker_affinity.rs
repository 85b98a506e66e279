//! Which worker a visitor belongs to: that of the tunnel which the first bytes name.

use tokio::net::TcpStream;
use tokio_rustls::rustls::server::Acceptor;

use super::accept::Visitors;

impl Visitors {
    /// Look at the first bytes of a connection, without taking them, and find the worker that has the
    /// tunnel's session. It is a matter of speed alone: any worker serves any visitor.
    pub(crate) async fn worker_for(&self, tcp: &TcpStream, tls: bool) -> usize {
        let mut first = vec![0; FIRST_BYTES];
        let Ok(length) = tcp.peek(&mut first).await else {
            return 0;
        };
        let host = match tls {
            true => server_name(&first[..length]),
            false => host(&first[..length]),
        };
        let tunnel = host.and_then(|host| {
            let host = host.to_ascii_lowercase();
            self.hold.present(self.name(&host)?)
        });
        tunnel.map_or(0, |tunnel| tunnel.worker)
    }
}

/// The server name of a ClientHello (RFC 6066 §3), if it is there already.
pub(crate) fn server_name(mut first: &[u8]) -> Option<String> {
    let mut acceptor = Acceptor::default();
    acceptor.read_tls(&mut first).ok()?;
    let hello = acceptor.accept().ok()??;
    hello.client_hello().server_name().map(str::to_owned)
}

/// The host of a request, without its port, if it is there already. Whether it is a valid one is
/// found out later.
pub(crate) fn host(first: &[u8]) -> Option<String> {
    let mut fields = [httparse::EMPTY_HEADER; 100];
    let mut request = httparse::Request::new(&mut fields);
    // What is there of an unfinished head will do.
    let _ = request.parse(first);
    let mut fields = request.headers.iter();
    let host = fields.find(|field| field.name.eq_ignore_ascii_case("host"))?;
    let host = str::from_utf8(host.value).ok()?;
    Some(host.split(':').next().unwrap_or(host).to_owned())
}

/// A ClientHello with a post-quantum key has 1.7 KB.
const FIRST_BYTES: usize = 4 << 10;

#[cfg(test)]
mod tests {
    use super::host;

    #[test]
    fn a_host_is_found_in_a_head_that_has_not_ended() {
        let first = b"GET / HTTP/1.1\r\nAccept: */*\r\nhOST: a.example.com:8080\r\nCookie: x";

        assert_eq!(host(first).as_deref(), Some("a.example.com"));
    }

    #[test]
    fn garbage_has_no_host() {
        assert_eq!(host(b"\x16\x03\x01"), None);
        assert_eq!(host(b""), None);
    }
}
