//! One HTTP/2 connection in the test's own hands, frame by frame: for what no HTTP library would send, and
//! for facts that none would tell.

use std::collections::VecDeque;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::http2::connect_tls;
use super::{Lab, within};

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;
pub const ACK: u8 = 1;

/// A visitor's connection.
pub struct Frames {
    stream: TlsStream<TcpStream>,
    host: String,
    /// What has been received, by the records of TLS in which it came.
    records: VecDeque<Vec<u8>>,
}

/// A frame that was received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
    /// Whether it came in the same record of TLS as the frame before it.
    pub is_together: bool,
}

impl Lab {
    /// Connect a visitor of the tunnel `name` over TLS, agree on HTTP/2, and say nothing yet.
    pub async fn frames(&self, name: &str) -> Frames {
        let host = format!("{name}.{}", self.domain);
        Frames {
            stream: connect_tls(self.https, &host, &self.ca(), b"h2").await,
            host,
            records: VecDeque::new(),
        }
    }
}

impl Frames {
    /// Send the preface, and settings.
    pub async fn begin(&mut self, settings: &[(u16, u32)]) {
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        let payload = settings.iter().flat_map(|(name, value)| {
            let value = value.to_be_bytes();
            name.to_be_bytes().into_iter().chain(value)
        });
        let payload: Vec<u8> = payload.collect();
        bytes.extend(frame(SETTINGS, 0, 0, &payload));
        self.send(&bytes).await;
    }

    /// Send bytes as they are.
    pub async fn send(&mut self, bytes: &[u8]) {
        assert!(self.try_send(bytes).await, "the edge is there");
    }

    /// Send bytes as they are, and report whether the other end still takes some.
    pub async fn try_send(&mut self, bytes: &[u8]) -> bool {
        let sending = async {
            self.stream.write_all(bytes).await?;
            self.stream.flush().await
        };
        within("sending", sending).await.is_ok()
    }

    /// The fields of a request.
    pub fn request(&self, method: &str, more: &[(&str, &str)]) -> Vec<u8> {
        let fields = [
            (":method", method),
            (":scheme", "https"),
            (":authority", &self.host),
            (":path", "/"),
        ];
        let fields = fields.iter().chain(more);
        // Literals without indexing (RFC 7541 §6.2.2).
        let literal = |(name, value): &(&str, &str)| {
            let short = |text: &str| [&[text.len() as u8], text.as_bytes()].concat();
            assert!(name.len() < 127 && value.len() < 127);
            [vec![0], short(name), short(value)].concat()
        };
        fields.flat_map(literal).collect()
    }

    /// Send a request without a body.
    pub async fn get(&mut self, stream: u32) {
        let fields = self.request("GET", &[]);
        let frame = frame(HEADERS, END_HEADERS | END_STREAM, stream, &fields);
        self.send(&frame).await;
    }

    /// Send the head of a request that has a body.
    pub async fn post(&mut self, stream: u32, more: &[(&str, &str)]) {
        let fields = self.request("POST", more);
        let frame = frame(HEADERS, END_HEADERS, stream, &fields);
        self.send(&frame).await;
    }

    /// Send a WINDOW_UPDATE for a stream, or for the connection (0).
    pub async fn open(&mut self, stream: u32, window: u32) {
        let frame = frame(WINDOW_UPDATE, 0, stream, &window.to_be_bytes());
        self.send(&frame).await;
    }

    /// Receive the next frame; `None` at the end of the connection. Settings and pings are answered by the
    /// way.
    pub async fn next(&mut self) -> Option<Frame> {
        loop {
            let header = self.take(9).await?;
            let (header, is_together) = header;
            let length = u32::from_be_bytes([0, header[0], header[1], header[2]]);
            let payload = match length {
                0 => Vec::new(),
                length => self.take(length as usize).await?.0,
            };
            let stream = [header[5], header[6], header[7], header[8]];
            let received = Frame {
                kind: header[3],
                flags: header[4],
                stream: u32::from_be_bytes(stream),
                payload,
                is_together,
            };
            match received.kind {
                SETTINGS | PING if received.flags & ACK != 0 => {}
                kind @ (SETTINGS | PING) => {
                    let payload = match kind {
                        PING => received.payload,
                        _ => Vec::new(),
                    };
                    self.try_send(&frame(kind, ACK, 0, &payload)).await;
                }
                WINDOW_UPDATE => {}
                _ => return Some(received),
            }
        }
    }

    /// Receive the next frame of a stream.
    pub async fn next_of(&mut self, stream: u32) -> Frame {
        loop {
            let frame = self.next().await.expect("a frame of the stream");
            if frame.stream == stream {
                return frame;
            }
        }
    }

    /// Receive what comes until the other end closes the connection.
    pub async fn rest(&mut self) -> Vec<Frame> {
        let mut frames = Vec::new();
        while let Some(frame) = self.next().await {
            frames.push(frame);
        }
        frames
    }

    /// Receive the end of an answer, and return its body.
    pub async fn body(&mut self, stream: u32) -> Vec<u8> {
        let mut body = Vec::new();
        loop {
            let frame = self.next_of(stream).await;
            assert!(matches!(frame.kind, HEADERS | DATA), "{frame:?}");
            if frame.kind == DATA {
                body.extend(frame.payload);
            }
            if frame.flags & END_STREAM != 0 {
                return body;
            }
        }
    }

    /// Take bytes, and tell whether they are not the first of a record.
    async fn take(&mut self, length: usize) -> Option<(Vec<u8>, bool)> {
        let mut is_together = None;
        let mut taken = Vec::new();
        while taken.len() < length {
            let Some(record) = self.records.front_mut() else {
                let record = self.record().await?;
                self.records.push_back(record);
                is_together.get_or_insert(false);
                continue;
            };
            is_together.get_or_insert(true);
            let here = (length - taken.len()).min(record.len());
            taken.extend(record.drain(..here));
            if record.is_empty() {
                self.records.pop_front();
            }
        }
        Some((taken, is_together.unwrap_or(true)))
    }

    /// Receive one record: rustls never gives away bytes of two at once.
    async fn record(&mut self) -> Option<Vec<u8>> {
        let mut record = vec![0; 17 << 10];
        match within("the edge's frames", self.stream.read(&mut record)).await {
            Ok(length @ 1..) => {
                record.truncate(length);
                Some(record)
            }
            _ => None,
        }
    }
}

/// Write a frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}
