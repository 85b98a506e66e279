//! QUIC handshakes that begin and never end.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::BytesMut;
use clap::Args;
use quinn_proto::crypto::rustls::QuicClientConfig;
use quinn_proto::{
    ClientConfig, Connection, ConnectionHandle, DatagramEvent, Endpoint, EndpointConfig,
    EndpointEvent,
};
use tokio::net::UdpSocket;
use tokio::time::{MissedTickBehavior, interval};

use crate::tls;

#[derive(Debug, Args)]
pub struct Options {
    /// Where the edge listens for agents
    address: SocketAddr,
    /// The name of the edge
    #[arg(long)]
    host: String,
    /// The address of them all
    #[arg(long)]
    from: IpAddr,
    /// Handshakes per second
    #[arg(long)]
    rate: u32,
    /// What agents speak
    #[arg(long, default_value = "qtunnel/1")]
    alpn: String,
}

/// Begin handshakes until killed, and print every second how many there were.
pub async fn run(options: &Options) -> Result<()> {
    let udp = UdpSocket::bind(SocketAddr::new(options.from, 0)).await?;
    let mut agents = Agents::new(options)?;
    let begun = Instant::now();
    let mut ticks = interval(TICK);
    // What was not sent in time is sent later: the rate is what counts.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let each = (options.rate as usize).div_ceil(TICKS);
    let mut buffer = [0; 1500];
    for tick in 1_u64.. {
        ticks.tick().await;
        for _ in 0..each {
            let packet = agents.begin()?;
            // What there is no room for is lost, as in a network.
            let _ = udp.try_send_to(&packet, options.address);
        }
        while let Ok((length, _)) = udp.try_recv_from(&mut buffer) {
            if is_retry(&buffer[..length])
                && let Some(packet) = agents.come_again(&buffer[..length])
            {
                let _ = udp.try_send_to(&packet, options.address);
            }
        }
        if tick.is_multiple_of(TICKS as u64) {
            println!(
                "attacking: {} handshakes in {:.1} s, {} asked to come again",
                agents.begun,
                begun.elapsed().as_secs_f64(),
                agents.again
            );
        }
    }
    Ok(())
}

/// Agents that say their first word, and nothing else than that word again.
struct Agents {
    endpoint: Endpoint,
    config: ClientConfig,
    edge: SocketAddr,
    host: String,
    /// Those that may be asked to come again.
    waiting: VecDeque<(ConnectionHandle, Connection)>,
    begun: u64,
    again: u64,
}

impl Agents {
    fn new(options: &Options) -> Result<Self> {
        let tls = tls::config(&[options.alpn.as_bytes()])?;
        let tls = QuicClientConfig::try_from(tls).context("not for QUIC")?;
        Ok(Self {
            endpoint: Endpoint::new(Arc::new(EndpointConfig::default()), None, true, None),
            config: ClientConfig::new(Arc::new(tls)),
            edge: options.address,
            host: options.host.clone(),
            waiting: VecDeque::new(),
            begun: 0,
            again: 0,
        })
    }

    /// Return the first packet of another agent.
    fn begin(&mut self) -> Result<Vec<u8>> {
        let now = Instant::now();
        let config = self.config.clone();
        let (handle, mut connection) = self.endpoint.connect(now, config, self.edge, &self.host)?;
        let packet = said(&mut connection, now).context("an agent says nothing")?;
        self.begun += 1;
        self.waiting.push_back((handle, connection));
        if self.waiting.len() > WAITING
            && let Some((handle, _)) = self.waiting.pop_front()
        {
            self.endpoint.handle_event(handle, EndpointEvent::drained());
        }
        Ok(packet)
    }

    /// Return the packet of an agent who was asked to show that its address is its own.
    fn come_again(&mut self, retry: &[u8]) -> Option<Vec<u8>> {
        let now = Instant::now();
        let datagram = BytesMut::from(retry);
        let event = self
            .endpoint
            .handle(now, self.edge, None, None, datagram, &mut Vec::new());
        let Some(DatagramEvent::ConnectionEvent(handle, event)) = event else {
            return None;
        };
        let (_, connection) = self
            .waiting
            .iter_mut()
            .find(|(whose, _)| *whose == handle)?;
        connection.handle_event(event);
        self.again += 1;
        said(connection, now)
    }
}

fn said(connection: &mut Connection, now: Instant) -> Option<Vec<u8>> {
    let mut packet = Vec::new();
    let _ = connection.poll_transmit(now, 1, &mut packet)?;
    Some(packet)
}

/// Tell a request to come again from all other answers (RFC 9000 §17.2.5), which are thrown away.
fn is_retry(packet: &[u8]) -> bool {
    packet.first().is_some_and(|first| first & 0xf0 == 0xf0)
}

/// Times per second that some handshakes begin.
const TICKS: usize = 100;

const TICK: Duration = Duration::from_millis(1_000 / TICKS as u64);

/// Agents that are kept in case they are asked to come again: more than an edge answers in a tenth of a second.
const WAITING: usize = 512;
