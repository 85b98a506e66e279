//! One TCP connection in the test's own hands, at whichever end: for bytes that no HTTP library would
//! send, and for facts about bytes that none would tell.

use std::io::ErrorKind;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::within;

/// A connection, and what has arrived on it and was not asked for yet.
pub struct Wire {
    stream: TcpStream,
    ahead: Vec<u8>,
}

impl Wire {
    pub fn new(stream: TcpStream) -> Self {
        stream.set_nodelay(true).expect("a live socket");
        let ahead = Vec::new();
        Self { stream, ahead }
    }

    /// Send bytes as they are.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        within("sending", self.stream.write_all(bytes.as_ref()))
            .await
            .expect("the other end is there");
    }

    /// Half-close: nothing more is sent, and everything may still be received.
    pub async fn finish(&mut self) {
        self.stream.shutdown().await.expect("a live socket");
    }

    /// Receive up to the end of a text's next occurrence.
    pub async fn until(&mut self, text: &str) -> Vec<u8> {
        let length = loop {
            let found = self
                .ahead
                .windows(text.len())
                .position(|at| at == text.as_bytes());
            if let Some(at) = found {
                break at + text.len();
            }
            let so_far = String::from_utf8_lossy(&self.ahead).into_owned();
            let more = self.receive(&format!("{text:?} after {so_far:?}")).await;
            assert!(
                more.is_ok_and(|more| more > 0),
                "ended without {text:?} after {so_far:?}"
            );
        };
        self.ahead.drain(..length).collect()
    }

    /// Receive a head, up to and with the empty line.
    pub async fn head(&mut self) -> String {
        String::from_utf8_lossy(&self.until("\r\n\r\n").await).into_owned()
    }

    /// Receive so many bytes.
    pub async fn bytes(&mut self, length: usize) -> Vec<u8> {
        while self.ahead.len() < length {
            let more = self.receive("more bytes").await;
            assert!(more.is_ok_and(|more| more > 0), "ended at {:?}", self.ahead);
        }
        self.ahead.drain(..length).collect()
    }

    /// Receive all that comes until the other end closes or resets the connection.
    pub async fn rest(&mut self) -> Vec<u8> {
        while self
            .receive("the other end's close")
            .await
            .is_ok_and(|more| more > 0)
        {}
        std::mem::take(&mut self.ahead)
    }

    /// Report whether anything (also an end) has arrived that was not asked for.
    pub fn has_more(&mut self) -> bool {
        let mut byte = [0];
        !self.ahead.is_empty()
            || !matches!(self.stream.try_read(&mut byte), Err(err) if err.kind() == ErrorKind::WouldBlock)
    }

    /// Receive and forget so many bytes, or those up to an earlier end; return how many. However long it takes,
    /// as long as more arrives.
    pub async fn skip(&mut self, length: u64) -> u64 {
        let mut piece = vec![0; PIECE];
        let mut skipped = self
            .ahead
            .drain(..self.ahead.len().min(length as usize))
            .count() as u64;
        while skipped < length {
            let here = PIECE.min((length - skipped) as usize);
            let more = within("more of a body", self.stream.read(&mut piece[..here]));
            match more.await {
                Ok(more @ 1..) => skipped += more as u64,
                _ => break,
            }
        }
        skipped
    }

    /// Send so many bytes, or as many as the other end takes, and tell of each piece.
    pub async fn pour(&mut self, length: u64, sent: impl Fn(u64)) {
        pour(&mut self.stream, length, sent).await;
    }

    /// Send so many bytes, however long it takes, as long as more of them are taken.
    pub async fn deliver(&mut self, mut left: u64) {
        while left > 0 {
            let here = left.min(PIECE as u64);
            within("room for more of a body", self.pour(here, |_| {})).await;
            left -= here;
        }
    }

    /// Send so many bytes and receive (and forget) as many, both at once.
    pub async fn exchange(&mut self, length: u64) {
        let skipped = self.ahead.drain(..).count() as u64;
        let (mut read, mut write) = self.stream.split();
        let mut piece = vec![0; PIECE];
        let receive = async {
            let mut left = length - skipped;
            while left > 0 {
                let more = read.read(&mut piece).await.expect("a sound connection");
                left = left
                    .checked_sub(more as u64)
                    .filter(|_| more > 0)
                    .expect("exactly as much");
            }
        };
        tokio::join!(receive, pour(&mut write, length, |_| {}));
    }

    async fn receive(&mut self, what: &str) -> std::io::Result<usize> {
        within(what, self.stream.read_buf(&mut self.ahead)).await
    }
}

/// The connections that somebody opens to a server in the test's hands.
pub struct Wires(mpsc::UnboundedReceiver<TcpStream>);

impl Wires {
    pub(super) fn new(accepted: mpsc::UnboundedReceiver<TcpStream>) -> Self {
        Self(accepted)
    }

    /// Wait for the next connection.
    pub async fn next(&mut self) -> Wire {
        let stream = within("a connection to the upstream", self.0.recv()).await;
        Wire::new(stream.expect("the server is running"))
    }

    /// Report whether another connection has been opened.
    pub fn is_empty(&mut self) -> bool {
        self.0.is_empty()
    }
}

async fn pour(to: &mut (impl AsyncWriteExt + Unpin), mut left: u64, sent: impl Fn(u64)) {
    let piece = vec![b'x'; PIECE];
    while left > 0 {
        let here = PIECE.min(left as usize);
        let Ok(more) = to.write(&piece[..here]).await else {
            return;
        };
        left -= more as u64;
        sent(more as u64);
    }
}

/// What is read or written at once where bytes come by the million.
const PIECE: usize = 256 << 10;
