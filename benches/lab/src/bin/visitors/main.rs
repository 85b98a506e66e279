//! Visitors that no load generator plays: many at once who say nothing, many who read slowly, some who
//! ask at fixed times whatever becomes of it, and one who waits for a tunnel to come up.

mod ask;
mod idle;
mod slow;
mod start;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail};
use clap::{Args, Parser};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
};

/// Visitors that no load generator plays.
#[derive(Debug, Parser)]
enum Command {
    /// Ask at fixed times, each time on a new connection, and print how long the answers took
    Ask(ask::Options),
    /// Upgrade connections, send a message on each and get it back, print `all are open`, and be silent
    Idle(idle::Options),
    /// Read long bodies slowly, and say at the end how many visitors were served
    Slow(slow::Options),
    /// Run a command and print after how many milliseconds the first request was answered
    Start(start::Options),
}

/// Where visitors go.
#[derive(Debug, Args)]
struct Place {
    address: SocketAddr,
    /// What they call it; `#` stands for a number below --hosts
    #[arg(long, default_value = "lab")]
    host: String,
    #[arg(long, default_value_t = 1)]
    hosts: usize,
}

fn main() -> Result<()> {
    // One thread: what is measured shall have the other core.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    match Command::parse() {
        Command::Ask(options) => runtime.block_on(ask::run(Arc::new(options))),
        Command::Idle(options) => runtime.block_on(idle::run(Arc::new(options))),
        Command::Slow(options) => runtime.block_on(slow::run(Arc::new(options))),
        Command::Start(options) => runtime.block_on(start::run(&options)),
    }
}

impl Place {
    /// Connect the visitor of this number, perhaps with a receive buffer that the kernel does not enlarge.
    async fn connect(&self, receive_buffer: Option<u32>) -> Result<TcpStream> {
        let socket = match self.address {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        if let Some(bytes) = receive_buffer {
            socket.set_recv_buffer_size(bytes)?;
        }
        socket
            .connect(self.address)
            .await
            .with_context(|| format!("cannot connect to {}", self.address))
    }

    /// Send a request of the visitor of this number, and read the answer's status and head, to the byte.
    async fn ask(
        &self,
        visitor: usize,
        tcp: &mut TcpStream,
        target: &str,
        fields: &str,
    ) -> Result<u16> {
        let host = self
            .host
            .replace('#', &(visitor % self.hosts.max(1)).to_string());
        let request = format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n");
        tcp.write_all(request.as_bytes()).await?;

        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            if head.len() > MOST_HEAD {
                bail!("a head without an end");
            }
            // A byte at a time, to leave alone what follows; there is no hurry.
            head.push(tcp.read_u8().await.context("no answer")?);
        }
        let head = String::from_utf8_lossy(&head);
        let status = head.split(' ').nth(1).and_then(|word| word.parse().ok());
        status.with_context(|| format!("not an answer: {head:?}"))
    }
}

/// More than any answer's head in the laboratory.
const MOST_HEAD: usize = 4096;

/// How long it may take until all visitors have what they came for.
const ARRIVAL: Duration = Duration::from_secs(60);

/// Visitors that arrive at the same time.
const ARRIVING: usize = 64;
