//! A newer process of the edge takes over from an older one.

mod breakdown;
mod manager;
mod redialling;
mod rolling;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;

use crate::lab::{Server, Visitor, Wire, way, within};

/// An upstream that answers `/` with a word and `/big` with [`BIG`] bytes, and echoes what follows an
/// upgrade.
async fn upstream() -> Server {
    Server::http(|mut request: Request<Incoming>| async move {
        let mut response = Response::new(Empty::new().map_err(|err| match err {}).boxed_unsync());
        if request.headers().contains_key("upgrade") {
            *response.status_mut() = hyper::StatusCode::SWITCHING_PROTOCOLS;
            for (name, value) in [("connection", "upgrade"), ("upgrade", "websocket")] {
                response.headers_mut().insert(name, value.parse().unwrap());
            }
            // It ends with the conversation.
            tokio::spawn(async move {
                let upgraded = hyper::upgrade::on(&mut request).await.expect("an upgrade");
                let (mut read, mut write) = tokio::io::split(TokioIo::new(upgraded));
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        } else if request.uri().path() == "/big" {
            let chunks = (0..way::large(BIG) / CHUNK)
                .map(|at| Ok::<_, std::io::Error>(Frame::data(chunk(at))));
            *response.body_mut() =
                StreamBody::new(futures_util::stream::iter(chunks)).boxed_unsync();
        } else {
            let body = http_body_util::Full::new(Bytes::from_static(b"here"));
            *response.body_mut() = body.map_err(|err| match err {}).boxed_unsync();
        }
        response
    })
    .await
}

/// The size of a large download.
const BIG: u64 = 100 << 20;
const CHUNK: u64 = 64 << 10;

/// A piece of the download, unlike any other.
fn chunk(at: u64) -> Bytes {
    let words = (0..CHUNK / 8).flat_map(|word| (at << 32 | word).to_le_bytes());
    words.collect()
}

/// A download that has begun.
struct Download {
    body: Incoming,
    received: Vec<u8>,
}

impl Download {
    /// Begin it and receive a little: the rest waits until it is wanted.
    async fn begin(visitor: &Visitor) -> Self {
        let request = Request::get("/big");
        let response = visitor.begin(request, Empty::<Bytes>::new()).await;
        assert_eq!(response.status(), 200);
        let mut download = Self {
            body: response.into_body(),
            received: Vec::new(),
        };
        download.receive(1 << 20).await;
        download
    }

    async fn receive(&mut self, more: usize) {
        let wanted = self.received.len() + more;
        while self.received.len() < wanted {
            let frame = within("the download's next piece", self.body.frame()).await;
            let frame = frame.expect("more").expect("an unbroken download");
            self.received.extend(frame.into_data().expect("data"));
        }
    }

    /// Receive the rest, and compare it all.
    async fn ends_exact(mut self) {
        let rest = within("the download's end", self.body.collect()).await;
        let rest = rest.expect("an unbroken download").to_bytes();
        self.received.extend(rest);
        assert_eq!(self.received.len() as u64, way::large(BIG));
        for (at, piece) in self.received.chunks(CHUNK as usize).enumerate() {
            assert!(piece == chunk(at as u64), "piece {at} is another");
        }
    }
}

/// A conversation after an upgrade.
struct Socket(Wire);

impl Socket {
    async fn open(visitor: &Visitor) -> Self {
        let mut wire = visitor.wire().await;
        let host = &visitor.host;
        let request = format!(
            "GET /socket HTTP/1.1\r\nhost: {host}\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
             sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n\r\n"
        );
        wire.send(request).await;
        let head = wire.head().await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        Self(wire)
    }

    async fn echoes(&mut self, text: &str) {
        self.0.send(text).await;
        assert_eq!(self.0.bytes(text.len()).await, text.as_bytes());
    }
}
