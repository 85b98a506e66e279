//! The local web server that every peer of the laboratory publishes.
//!
//! `GET /bytes/N` answers N bytes; whoever asks for the protocol `echo` gets back what it sends; any
//! other method reads the body and answers how long it was. It must never be what limits a measurement, so it allocates nothing per byte and little per request.

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::OnceLock,
    task::{Context as TaskContext, Poll},
};

use anyhow::{Context, Result};
use bytes::Bytes;
use clap::Parser;
use http_body_util::BodyExt;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Body, Frame, Incoming, SizeHint},
    header::{CONNECTION, HeaderValue, UPGRADE},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use socket2::{Domain, Socket, Type};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

/// The local web server that every peer of the laboratory publishes.
#[derive(Debug, Parser)]
struct Options {
    listen: SocketAddr,
    /// TCP congestion control of accepted connections, instead of the namespace's.
    #[arg(long)]
    congestion: Option<String>,
}

#[tokio::main]
async fn main() -> Result<()> {
    let options = Options::parse();
    let listener =
        listen(&options).with_context(|| format!("cannot listen on {}", options.listen))?;
    loop {
        let (tcp, _) = listener.accept().await.context("cannot accept")?;
        // Small answers must not wait for an acknowledgement; without it they only come later.
        let _ = tcp.set_nodelay(true);
        // Nobody waits for a conversation: the laboratory ends this process when it is done.
        tokio::spawn(
            http1::Builder::new()
                .serve_connection(TokioIo::new(tcp), service_fn(answer))
                .with_upgrades(),
        );
    }
}

fn listen(options: &Options) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(options.listen), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    if let Some(congestion) = &options.congestion {
        // Accepted connections inherit it.
        socket.set_tcp_congestion(congestion.as_bytes())?;
    }
    socket.bind(&options.listen.into())?;
    // Enough for the 256 connections of the largest row to arrive at once.
    socket.listen(1_024)?;
    socket.set_nonblocking(true)?;
    TcpListener::from_std(socket.into())
}

async fn answer(request: Request<Incoming>) -> Result<Response<Noise>, hyper::Error> {
    if request
        .headers()
        .get(UPGRADE)
        .is_some_and(|to| to == "echo")
    {
        return Ok(echo(request));
    }
    if request.method() != Method::GET {
        return Ok(Response::new(Noise::text(
            drain(request.into_body()).await?,
        )));
    }
    let length = request
        .uri()
        .path()
        .strip_prefix("/bytes/")
        .and_then(|n| n.parse().ok());
    let Some(length) = length else {
        let mut response = Response::new(Noise::of(0));
        *response.status_mut() = StatusCode::NOT_FOUND;
        return Ok(response);
    };
    Ok(Response::new(Noise::of(length)))
}

/// Agree to a WebSocket, and echo its bytes: what they mean is the same to everybody in between.
fn echo(request: Request<Incoming>) -> Response<Noise> {
    // Nobody waits for it either.
    tokio::spawn(async move {
        let mut upgraded = TokioIo::new(hyper::upgrade::on(request).await?);
        let mut message = [0; 1024];
        loop {
            let length = upgraded.read(&mut message).await?;
            if length == 0 {
                return anyhow::Ok(());
            }
            upgraded.write_all(&message[..length]).await?;
        }
    });
    let mut response = Response::new(Noise::of(0));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    response
}

/// Read a body to its end and say how long it was.
async fn drain(mut body: Incoming) -> Result<String, hyper::Error> {
    let mut length = 0;
    while let Some(frame) = body.frame().await {
        length += frame?.data_ref().map_or(0, Bytes::len);
    }
    Ok(format!("{length}\n"))
}

/// A body of a given length that repeats one block of noise.
struct Noise {
    left: u64,
    block: Bytes,
}

impl Noise {
    /// Large enough that a gigabyte costs few calls, small enough to stay in the processor's cache.
    const BLOCK: usize = 256 * 1024;

    fn of(length: u64) -> Self {
        static BLOCK: OnceLock<Bytes> = OnceLock::new();
        // Incompressible, so that a peer that compresses gains nothing.
        let block = BLOCK.get_or_init(|| {
            let mut block = vec![0; Self::BLOCK];
            fastrand::Rng::with_seed(1).fill(&mut block);
            block.into()
        });
        Self {
            left: length,
            block: block.clone(),
        }
    }

    fn text(text: String) -> Self {
        Self {
            left: text.len() as u64,
            block: text.into(),
        }
    }
}

impl Body for Noise {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut TaskContext<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        let length = self.left.min(self.block.len() as u64);
        self.left -= length;
        Poll::Ready(Some(Ok(Frame::data(self.block.slice(..length as usize)))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
