//! Upstreams: real servers on loopback.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use qtunnel::{Address, Target, Upstream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;

use super::wire::Wires;

/// A server that stops when it is dropped.
pub struct Server {
    pub addr: SocketAddr,
    h2c: bool,
    task: JoinHandle<()>,
}

impl Server {
    /// Answer HTTP/1.1 requests with a function.
    pub async fn http<F, Fut, B>(answer: F) -> Self
    where
        F: Fn(Request<Incoming>) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Response<B>> + Send + 'static,
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        Self::raw(move |stream| {
            let answer = answer.clone();
            async move {
                let service = service_fn(move |request| {
                    let answered = answer(request);
                    async move { Ok::<_, Infallible>(answered.await) }
                });
                let _ = http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .with_upgrades()
                    .await;
            }
        })
        .await
    }

    /// Answer HTTP/2 requests in clear text with a function.
    pub async fn h2c<F, Fut, B>(answer: F) -> Self
    where
        F: Fn(Request<Incoming>) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Response<B>> + Send + 'static,
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let mut server = Self::raw(move |stream| {
            let answer = answer.clone();
            async move {
                let service = service_fn(move |request| {
                    let answered = answer(request);
                    async move { Ok::<_, Infallible>(answered.await) }
                });
                let _ = http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            }
        })
        .await;
        server.h2c = true;
        server
    }

    /// Do anything with each connection: for answers that no HTTP library would give.
    pub async fn raw<F, Fut>(serve: F) -> Self
    where
        F: Fn(TcpStream) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let addr = listener.local_addr().expect("bound");
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let _ = stream.set_nodelay(true);
                let served = serve.clone();
                // It ends with its connection, which the test's end closes.
                tokio::spawn(async move {
                    // An agent's first look at whether anybody listens is no conversation.
                    if matches!(stream.peek(&mut [0]).await, Ok(1..)) {
                        served(stream).await;
                    }
                });
            }
        });
        Self {
            addr,
            h2c: false,
            task,
        }
    }

    /// Send half of a body, and the other half when told to.
    pub async fn halting() -> (Self, watch::Sender<bool>) {
        Self::halting_before(b" last").await
    }

    /// Send `first` of a body, and the rest when told to.
    pub async fn halting_before(rest: &'static [u8]) -> (Self, watch::Sender<bool>) {
        let (go_on, told) = watch::channel(false);
        let server = Self::raw(move |mut stream| {
            let mut told = told.clone();
            async move {
                let mut request = [0; 4096];
                let _ = stream.read(&mut request).await;
                let length = b"first".len() + rest.len();
                let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n");
                let _ = stream.write_all(head.as_bytes()).await;
                let _ = stream.write_all(b"first").await;
                if told.wait_for(|told| *told).await.is_ok() {
                    let _ = stream.write_all(rest).await;
                }
            }
        })
        .await;
        (server, go_on)
    }

    /// Accept requests and never answer. The returned value tells when one has arrived.
    pub async fn silent() -> (Self, Arc<Notify>) {
        let arrival = Arc::new(Notify::new());
        let arrived = arrival.clone();
        let server = Self::raw(move |mut stream| {
            let arrived = arrived.clone();
            async move {
                let mut request = [0; 4096];
                // An agent looks at the start whether anybody listens, and says nothing then.
                if matches!(stream.read(&mut request).await, Ok(1..)) {
                    arrived.notify_one();
                    // Until the agent gives up.
                    let _ = stream.read(&mut request).await;
                }
            }
        })
        .await;
        (server, arrival)
    }

    /// Hand each connection to the test.
    pub async fn by_hand() -> (Self, Wires) {
        let (accepted, wires) = mpsc::unbounded_channel();
        let server = Self::raw(move |stream| {
            let _ = accepted.send(stream);
            async {}
        })
        .await;
        (server, Wires::new(wires))
    }

    /// Echo the request's body, and its head in `x-method`, `x-target` and `x-host`.
    pub async fn echo() -> Self {
        Self::http(|request: Request<Incoming>| async move {
            let mut response = Response::builder()
                .header("x-method", request.method().as_str())
                .header("x-target", request.uri().to_string());
            if let Some(host) = request.headers().get("host") {
                response = response.header("x-host", host);
            }
            response
                .body(request.into_body())
                .expect("a valid response")
        })
        .await
    }

    /// Answer every request with a text.
    pub async fn text(text: &'static str) -> Self {
        Self::http(move |request: Request<Incoming>| async move {
            let _ = request.into_body().collect().await;
            Response::new(Full::new(Bytes::from_static(text.as_bytes())))
        })
        .await
    }
}

impl From<&Server> for Upstream {
    fn from(server: &Server) -> Self {
        let (host, port) = (server.addr.ip().to_string(), server.addr.port());
        Address::Target(match server.h2c {
            true => Target::H2c { host, port },
            false => Target::Http { host, port },
        })
        .into()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}
