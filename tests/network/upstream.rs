//! The local service: bytes that everybody knows, and small answers.

use std::sync::{LazyLock, mpsc};
use std::thread::{self, JoinHandle};

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::{Request, Response};
use tokio::sync::oneshot;

use crate::lab::Server;
use crate::space::Space;

/// Bytes of a small answer.
pub const SMALL: usize = 1024;

/// Serves `/N`, N bytes of noise, until it is dropped.
pub struct Upstream {
    pub port: u16,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Upstream {
    /// Serve in a namespace.
    pub fn start(space: &Space) -> Self {
        let (stop, stopped) = oneshot::channel();
        let (started, port) = mpsc::channel();
        let entrance = space.entrance();
        let thread = thread::spawn(move || {
            entrance.block_on(async || {
                let server = Server::http(answer).await;
                let _ = started.send(server.addr.port());
                let _ = stopped.await;
            });
        });
        Self {
            port: port.recv().expect("the upstream starts"),
            stop: Some(stop),
            thread: Some(thread),
        }
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn answer(
    request: Request<Incoming>,
) -> Response<impl hyper::body::Body<Data = Bytes, Error = std::convert::Infallible> + Send> {
    let path = request.uri().path().trim_start_matches('/').to_owned();
    let _ = request.into_body().collect().await;
    let length = path.parse().unwrap_or(SMALL);
    let pieces = (0..length).step_by(PIECE).map(move |from| {
        let to = length.min(from + PIECE);
        Ok(Frame::data(noise(from, to - from)))
    });
    Response::builder()
        .header("content-length", length)
        .body(StreamBody::new(stream::iter(pieces)))
        .expect("a valid response")
}

/// Bytes in one piece of a body.
const PIECE: usize = 16 << 10;

/// A part of the endless body, of at most [`PIECE`] bytes.
pub fn noise(offset: usize, length: usize) -> Bytes {
    static NOISE: LazyLock<Bytes> = LazyLock::new(|| {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut bytes = Vec::with_capacity(PERIOD + PIECE);
        while bytes.len() < PERIOD {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            bytes.push((state >> 32) as u8);
        }
        bytes.extend_from_within(..PIECE);
        bytes.into()
    });
    NOISE.slice(offset % PERIOD..offset % PERIOD + length)
}

/// A prime number, so that bytes at the wrong place are other bytes.
const PERIOD: usize = 1_048_573;
