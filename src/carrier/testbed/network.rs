//! Simulated network conditions, and the packets under way.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use tokio::{sync::watch, time::Instant};

use super::random::Random;
use super::udp::Mailbox;

/// Address of the edge's UDP socket.
pub(crate) const EDGE: SocketAddr = SocketAddr::V4(std::net::SocketAddrV4::new(
    std::net::Ipv4Addr::new(192, 0, 2, 1),
    443,
));

/// Bandwidth of UDP in either direction, in bytes per second: a transfer of a few megabytes takes a
/// while.
const BANDWIDTH: u64 = 4_000_000;

/// Longest queueing delay before a packet is dropped.
const MAX_QUEUE_DELAY: Duration = Duration::from_millis(50);

/// Network conditions.
#[derive(Clone, Debug)]
pub(crate) struct Conditions {
    pub(crate) delay: Duration,
    /// Largest additional delay, so that packets are reordered.
    pub(crate) jitter: Duration,
    pub(crate) loss: f64,
    pub(crate) to_edge: bool,
    pub(crate) to_agent: bool,
    /// Set if WebSockets can be dialled.
    pub(crate) dialling: bool,
}

pub(crate) struct Network {
    state: Mutex<State>,
    /// State of TCP.
    pub(crate) tcp: watch::Sender<Tcp>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tcp {
    pub(crate) moves: bool,
    pub(crate) cuts: u32,
    /// Number of times all TCP connections so far have died silently.
    pub(crate) deaths: u32,
}

struct State {
    random: Random,
    conditions: Conditions,
    mailboxes: HashMap<SocketAddr, Arc<Mailbox>>,
    /// Public address of the agent, as its NAT maps it.
    nat: u8,
    next_port: u16,
    /// Probes that the agent has sent: after the handshake nothing else has a long header.
    probes: usize,
    /// Packets that the edge has sent.
    to_agent: usize,
    /// Time at which the last packet to the edge, and the last one to the agent, will have left.
    busy_until: [Instant; 2],
}

impl Network {
    pub(crate) fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                random: Random::new(seed),
                conditions: Conditions {
                    delay: Duration::from_millis(10),
                    jitter: Duration::ZERO,
                    loss: 0.0,
                    to_edge: true,
                    to_agent: true,
                    dialling: true,
                },
                mailboxes: HashMap::new(),
                nat: 1,
                next_port: 50_000,
                probes: 0,
                to_agent: 0,
                busy_until: [Instant::now(); 2],
            }),
            tcp: watch::channel(Tcp {
                moves: true,
                cuts: 0,
                deaths: 0,
            })
            .0,
        })
    }

    pub(crate) fn conditions(&self) -> Conditions {
        self.lock().conditions.clone()
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut Conditions)) {
        change(&mut self.lock().conditions);
    }

    /// Return the number of probes that the agent has sent, with the packets of its handshake.
    pub(crate) fn probes(&self) -> usize {
        self.lock().probes
    }

    /// Return the number of packets that the edge has sent.
    pub(crate) fn packets_to_agent(&self) -> usize {
        self.lock().to_agent
    }

    /// Let UDP pass, or drop all of it.
    pub(crate) fn udp(&self, passes: bool) {
        self.change(|conditions| (conditions.to_edge, conditions.to_agent) = (passes, passes));
    }

    /// Let TCP make progress, or stall it as a dead link does.
    pub(crate) fn tcp_moves(&self, moves: bool) {
        self.tcp.send_modify(|tcp| tcp.moves = moves);
    }

    /// Cut all TCP connections.
    pub(crate) fn cut_tcp(&self) {
        self.tcp.send_modify(|tcp| tcp.cuts += 1);
    }

    /// Silently drop everything on the present TCP connections.
    pub(crate) fn kill_tcp(&self) {
        self.tcp.send_modify(|tcp| tcp.deaths += 1);
    }

    /// Give the agent another public address, as a NAT does whose mapping has expired.
    pub(crate) fn rebind_nat(&self) {
        let mut state = self.lock();
        state.nat = state.nat.wrapping_add(1).max(1);
    }

    pub(crate) fn open(&self, addr: Option<SocketAddr>) -> (SocketAddr, Arc<Mailbox>) {
        let mut state = self.lock();
        let addr = addr.unwrap_or_else(|| {
            state.next_port += 1;
            ([10, 0, 0, 1], state.next_port).into()
        });
        let mailbox = Arc::new(Mailbox::default());
        state.mailboxes.insert(addr, mailbox.clone());
        (addr, mailbox)
    }

    pub(crate) fn close(&self, addr: SocketAddr) {
        self.lock().mailboxes.remove(&addr);
    }

    /// Carry a datagram, subject to the conditions.
    pub(crate) fn carry(&self, from: SocketAddr, to: SocketAddr, datagram: &[u8]) {
        let mut state = self.lock();
        state.to_agent += usize::from(from == EDGE);
        state.probes += usize::from(from != EDGE && datagram[0] & 0x80 != 0);
        let conditions = state.conditions.clone();
        let (open, from, to) = match from == EDGE {
            true => match inside(to, state.nat) {
                Some(to) => (conditions.to_agent, from, to),
                None => return,
            },
            false => (conditions.to_edge, outside(from, state.nat), to),
        };
        if !open || state.random.chance(conditions.loss) {
            return;
        }
        let late = match conditions.jitter.as_micros() as u64 {
            0 => 0,
            jitter => state.random.below(jitter),
        };
        let Some(mailbox) = state.mailboxes.get(&to).cloned() else {
            return;
        };
        let now = Instant::now();
        let busy_until = &mut state.busy_until[usize::from(from == EDGE)];
        let turn = now.max(*busy_until);
        if turn > now + MAX_QUEUE_DELAY {
            return;
        }
        *busy_until = turn + Duration::from_micros(datagram.len() as u64 * 1_000_000 / BANDWIDTH);
        let due = *busy_until + conditions.delay + Duration::from_micros(late);
        drop(state);
        mailbox.put(due, from, datagram.to_vec());
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

/// Return the public address to which the NAT maps one of the agent's.
fn outside(agent: SocketAddr, nat: u8) -> SocketAddr {
    ([198, 51, 100, nat], agent.port()).into()
}

/// Return the agent's address behind a public one, while the mapping is valid.
fn inside(public: SocketAddr, nat: u8) -> Option<SocketAddr> {
    let port = public.port();
    (public == outside(public, nat)).then_some(([10, 0, 0, 1], port).into())
}
