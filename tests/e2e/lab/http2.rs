//! Visitors over TLS and HTTP/2: one connection, any number of requests at once.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper::body::{Body, Frame, Incoming};
use hyper::client::conn::http2::{self, SendRequest};
use hyper::http::request::Builder;
use hyper::{Response, Uri};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::visitor::collect;
use super::{Reply, within};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// An HTTP/2 connection of a visitor.
#[derive(Clone)]
pub struct Http2 {
    sender: SendRequest<UnsyncBoxBody<Bytes, BoxError>>,
    authority: String,
}

impl Http2 {
    /// Connect to whatever terminates TLS for this host.
    pub async fn connect(addr: SocketAddr, host: &str, ca: &Path) -> Self {
        let tls = connect_tls(addr, host, ca, b"h2").await;
        let handshake = http2::Builder::new(TokioExecutor::new())
            .max_header_list_size(HEAD)
            .handshake(TokioIo::new(tls));
        let (sender, connection) = handshake.await.expect("HTTP/2");
        // It ends when the last sender and the last response are gone.
        tokio::spawn(connection);
        Self {
            sender,
            authority: format!("{host}:{}", addr.port()),
        }
    }

    /// Return the address of a path.
    pub fn uri(&self, path: &str) -> Uri {
        let uri = format!("https://{}{path}", self.authority);
        uri.parse().expect("a valid address")
    }

    /// Send a request and return once the head of the response is here. Dropping the future or what
    /// it returns resets the stream.
    pub async fn begin<B>(&self, request: Builder, body: B) -> hyper::Result<Response<Incoming>>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        within("the response's head", self.ask(request, body)).await
    }

    /// The same, however long it takes.
    pub async fn ask<B>(&self, request: Builder, body: B) -> hyper::Result<Response<Incoming>>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let body = body.map_err(Into::into).boxed_unsync();
        let request = request.body(body).expect("a valid request");
        self.sender.clone().send_request(request).await
    }

    /// Send a request with a large body, and return once the head of the response is here, however long it
    /// takes, as long as more of the body is taken.
    pub async fn deliver(
        &self,
        request: Builder,
        body: Bytes,
    ) -> hyper::Result<Response<Incoming>> {
        let (take, mut taken) = watch::channel(());
        let request = request.header("content-length", body.len());
        let pieces = (0..body.len()).step_by(PIECE).map(move |at| {
            take.send_replace(());
            let piece = body.slice(at..body.len().min(at + PIECE));
            Ok::<_, BoxError>(Frame::data(piece))
        });
        let body = StreamBody::new(futures_util::stream::iter(pieces)).boxed_unsync();
        let mut sender = self.sender.clone();
        let sent = sender.send_request(request.body(body).expect("a valid request"));
        let mut sent = std::pin::pin!(sent);
        loop {
            tokio::select! {
                response = &mut sent => return response,
                more = within("room for more of a body", taken.changed()) => if more.is_err() {
                    break;
                },
            }
        }
        within("the response's head", sent).await
    }

    /// Get a path, or nothing if the connection has ended and the request was not seen by the other end.
    pub async fn attempt(&self, path: &str) -> hyper::Result<Option<Reply>> {
        let empty = Empty::new().map_err(|never| match never {});
        let request = hyper::Request::get(self.uri(path)).body(empty.boxed_unsync());
        let mut sender = self.sender.clone();
        let sent = sender.try_send_request(request.expect("a valid request"));
        match within("the response's head", sent).await {
            Ok(response) => Ok(Some(collect(response).await)),
            Err(mut failed) => match failed.take_message() {
                Some(_) => Ok(None),
                None if is_unprocessed(failed.error()) => Ok(None),
                None => Err(failed.into_error()),
            },
        }
    }

    /// Send a request without a body.
    pub async fn send(&self, request: Builder) -> Reply {
        let response = self.begin(request, Empty::new()).await;
        collect(response.expect("a response")).await
    }

    /// Get a path.
    pub async fn get(&self, path: &str) -> Reply {
        self.send(hyper::Request::get(self.uri(path))).await
    }
}

/// Connect to whatever terminates TLS for this host, and agree on a protocol.
pub async fn connect_tls(
    addr: SocketAddr,
    host: &str,
    ca: &Path,
    protocol: &[u8],
) -> TlsStream<TcpStream> {
    let tcp = within("connecting to the edge", TcpStream::connect(addr)).await;
    let tcp = tcp.expect("the edge listens");
    start_tls(tcp, host, ca, protocol).await
}

/// Agree on a protocol over a connection that is there.
pub async fn start_tls(
    tcp: TcpStream,
    host: &str,
    ca: &Path,
    protocol: &[u8],
) -> TlsStream<TcpStream> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca).expect("the lab's CA") {
        roots
            .add(certificate.expect("a certificate"))
            .expect("a CA");
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has them")
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = vec![protocol.to_vec()];
    let name = ServerName::try_from(host.to_owned()).expect("a host name");
    tcp.set_nodelay(true).expect("a live socket");
    let tls = TlsConnector::from(Arc::new(tls)).connect(name, tcp);
    let tls = within("the TLS handshake", tls)
        .await
        .expect("a trusted edge");
    assert_eq!(tls.get_ref().1.alpn_protocol(), Some(protocol));
    tls
}

/// Whether a request came behind the last one that the other end would take (RFC 9113 §6.8), as it may when it is
/// still to be written and the end of the connection is announced: to repeat it is safe, and all clients do.
fn is_unprocessed(err: &hyper::Error) -> bool {
    let source = std::error::Error::source(err);
    source
        .and_then(|err| err.downcast_ref::<h2::Error>())
        .is_some_and(|err| {
            err.is_go_away() && err.is_remote() && err.reason() == Some(h2::Reason::NO_ERROR)
        })
}

/// The longest head of an answer: what browsers read, and 32 bytes more for each field.
const HEAD: u32 = 512 << 10;

/// How much of a large body is sent at once.
const PIECE: usize = 64 << 10;
