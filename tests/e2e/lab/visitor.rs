//! Visitors: one HTTP/1.1 connection for each request through hyper, or bare bytes.

use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{Wire, within};

/// Somebody who visits one tunnel.
#[derive(Clone)]
pub struct Visitor {
    pub addr: SocketAddr,
    pub host: String,
}

/// A whole response.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: hyper::HeaderMap,
    pub body: Bytes,
    pub trailers: Option<hyper::HeaderMap>,
}

impl Reply {
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("text")
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or("")
    }
}

impl Visitor {
    pub fn new(addr: SocketAddr, host: String) -> Self {
        Self { addr, host }
    }

    /// Get a path.
    pub async fn get(&self, path: &str) -> Reply {
        self.send(Request::get(path)).await
    }

    /// Post a body.
    pub async fn post(&self, path: &str, body: impl Into<Bytes>) -> Reply {
        collect(
            self.begin(Request::post(path), Full::new(body.into()))
                .await,
        )
        .await
    }

    /// Send a request without a body. `Host` is added unless it is there.
    pub async fn send(&self, request: hyper::http::request::Builder) -> Reply {
        collect(self.begin(request, Full::new(Bytes::new())).await).await
    }

    /// Send a request and return once the head of the response is here.
    pub async fn begin<B>(
        &self,
        request: hyper::http::request::Builder,
        body: B,
    ) -> Response<Incoming>
    where
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        within("the response's head", self.wait(request, body)).await
    }

    /// Send a request and return once the head of the response is here, however long that takes.
    pub async fn wait<B>(
        &self,
        request: hyper::http::request::Builder,
        body: B,
    ) -> Response<Incoming>
    where
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let stream = within("connecting to the edge", TcpStream::connect(self.addr))
            .await
            .expect("the edge listens");
        stream.set_nodelay(true).expect("a live socket");
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .expect("a connection");
        // It ends with the response's body.
        tokio::spawn(connection.with_upgrades());
        let mut request = request.body(body).expect("a valid request");
        if !request.headers().contains_key("host") {
            request
                .headers_mut()
                .insert("host", self.host.parse().expect("a valid host"));
        }
        sender.send_request(request).await.expect("a response")
    }

    /// Send bytes as they are and return all that comes back until the edge closes.
    pub async fn raw(&self, bytes: impl AsRef<[u8]>) -> Vec<u8> {
        let mut stream = within("connecting to the edge", TcpStream::connect(self.addr))
            .await
            .expect("the edge listens");
        stream
            .write_all(bytes.as_ref())
            .await
            .expect("a live socket");
        let mut answer = Vec::new();
        within("the edge's close", stream.read_to_end(&mut answer))
            .await
            .expect("a clean close");
        answer
    }

    /// Open a bare connection.
    pub async fn connect(&self) -> TcpStream {
        within("connecting to the edge", TcpStream::connect(self.addr))
            .await
            .expect("the edge listens")
    }

    /// Open a connection for the test to speak on byte by byte.
    pub async fn wire(&self) -> Wire {
        Wire::new(self.connect().await)
    }
}

/// Receive a response to its end.
pub async fn collect(response: Response<Incoming>) -> Reply {
    let (head, body) = response.into_parts();
    let collected = within("the response's body", body.collect())
        .await
        .expect("a complete body");
    let trailers = collected.trailers().cloned();
    Reply {
        status: head.status.as_u16(),
        headers: head.headers,
        body: collected.to_bytes(),
        trailers,
    }
}
