//! Selection of the carrier, from observations of both and nothing else.
//!
//! Pure: time and observations come in, [`Action`]s go out. It never assumes that a carrier works
//! because it once did, nor that it is dead because it once was.
//!
//! On UDP: silence while something is unacknowledged raises suspicion. Under suspicion, UDP is
//! probed, a WebSocket is dialled, and once it is up packets are sent over both. Silence that lasts
//! means that UDP is dead. On the WebSocket: UDP is probed all the time, and several answers in a
//! row lead back to it.
//!
//! Only an acknowledgement or the answer to a probe shows that packets pass in both directions:
//! packets from the edge may be retransmissions, sent because it receives nothing.

pub(crate) mod dialer;
pub(crate) mod hold_down;
pub(crate) mod on_udp;
pub(crate) mod on_websocket;
pub(crate) mod probe;
pub(crate) mod probing;
pub(crate) mod progress;
pub(crate) mod receive_monitor;
pub(crate) mod suspicion;

use std::time::Duration;

use tokio::time::Instant;

use self::dialer::{WebSocketDialer, WebSocketState};
use self::hold_down::HoldDown;
use self::probing::Probing;
use self::progress::Unacked;
use self::receive_monitor::ReceiveActivity;
use self::suspicion::Suspicion;
use super::{Carrier, Transport};

/// Observation of both carriers at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Observation {
    pub(crate) now: Instant,
    pub(crate) udp: ReceiveActivity,
    pub(crate) websocket: ReceiveActivity,
    /// Data sent over the carrier in use of which the edge has acknowledged nothing yet.
    pub(crate) unacked: Option<Unacked>,
    /// Time of the edge's last acknowledgement.
    pub(crate) last_acked: Option<Instant>,
    pub(crate) rtt: Duration,
}

/// Step for the driver to take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Probe UDP.
    Probe,
    /// Dial a WebSocket; `websocket_up` or `websocket_failed` is called with the outcome.
    Dial,
    /// Close the WebSocket, or stop dialling it.
    CloseWebSocket,
    /// Send over this carrier from now on.
    SwitchTo { to: Carrier, reason: String },
    /// Send a PING, so that the edge learns our address: it may be sending to the previous one.
    Announce,
    /// Rebind to a new UDP socket and send a PING, so that both ends start retransmitting at once.
    Rebind,
}

/// Carrier selection of one connection.
#[derive(Debug)]
pub(crate) struct Selector {
    transport: Transport,
    current: Carrier,
    moved: Instant,
    dialer: WebSocketDialer,
    suspicion: Option<Suspicion>,
    /// Set while UDP is in use only because the WebSocket was lost.
    provisional: bool,
    /// Time up to which silence has been explained by an answered probe.
    cleared: Option<Instant>,
    /// Length of the run of packets then: the answers to our own probe do not start a new one.
    cleared_run: u32,
    probing: Probing,
    hold_down: HoldDown,
}

impl Selector {
    pub(crate) fn new(transport: Transport, current: Carrier, now: Instant) -> Self {
        let websocket = match current {
            Carrier::Udp => WebSocketState::Absent,
            Carrier::WebSocket => WebSocketState::Up,
        };
        Self {
            transport,
            current,
            moved: now,
            dialer: WebSocketDialer::new(websocket, now),
            suspicion: None,
            provisional: false,
            cleared: None,
            cleared_run: 0,
            probing: Probing::default(),
            hold_down: HoldDown::new(),
        }
    }

    /// Report whether packets should be sent over both carriers.
    pub(crate) fn sends_on_both(&self) -> bool {
        self.suspicion.is_some() || self.provisional
    }

    /// Return how long the driver may wait for the next packet before it decides again, if nothing
    /// is going on.
    pub(crate) fn idle_interval(&self, observation: &Observation) -> Option<Duration> {
        let busy = observation.unacked.is_some()
            || match self.current {
                Carrier::Udp => self.sends_on_both() || self.silent_since(observation).is_some(),
                Carrier::WebSocket => self.probing.consecutive_answers > 0,
            };
        (!busy).then_some(IDLE_INTERVAL)
    }

    /// Return the interval between two decisions while something is going on.
    pub(crate) const fn busy_interval() -> Duration {
        BUSY_INTERVAL
    }

    /// Record that an address of the edge has answered a probe.
    pub(crate) fn probe_answered(&mut self) {
        self.probing.answer_received();
    }

    /// Report whether a WebSocket that was dialled is still of use.
    pub(crate) fn wants_websocket(&self) -> bool {
        self.dialer.is_wanted()
    }

    /// Record that the dialled WebSocket is up.
    pub(crate) fn websocket_up(&mut self, now: Instant) -> Vec<Action> {
        self.dialer.succeeded();
        if self.current == Carrier::WebSocket {
            return vec![self.switch_to(Carrier::WebSocket, now, "websocket dialled again".into())];
        }
        match self.suspicion {
            // Send over both from now on: whichever carries an acknowledgement is the one to use.
            Some(_) => vec![Action::Announce],
            None => Vec::new(),
        }
    }

    /// Record that dialling a WebSocket has failed.
    pub(crate) fn websocket_failed(&mut self, now: Instant) {
        self.dialer.failed(now);
    }

    /// Handle the end of the WebSocket, for the reason given.
    pub(crate) fn websocket_lost(&mut self, now: Instant, why: &str) -> Vec<Action> {
        self.dialer.lost();
        if self.current == Carrier::Udp {
            return Vec::new();
        }
        let mut actions = vec![self.dialer.dial()];
        if self.transport == Transport::Auto {
            self.provisional = true;
            actions.push(self.probing.probe(now));
            actions.push(self.switch_to(
                Carrier::Udp,
                now,
                format!("websocket lost ({why}), moved to udp"),
            ));
        }
        actions
    }

    /// Handle a change of network, or a wake-up from sleep.
    pub(crate) fn network_changed(&mut self, now: Instant, what: &str) -> Vec<Action> {
        match (self.transport, self.current) {
            (Transport::Quic, _) | (_, Carrier::Udp) => {
                self.suspicion = Some(Suspicion::new(now));
                let mut actions = vec![Action::Rebind, self.probing.probe(now)];
                if self.dialer.state != WebSocketState::Absent {
                    // It was dialled from the previous network.
                    self.dialer.lost();
                    actions.push(Action::CloseWebSocket);
                }
                actions
            }
            (_, Carrier::WebSocket) => {
                let mut actions = vec![Action::CloseWebSocket];
                actions.extend(self.websocket_lost(now, what));
                actions
            }
        }
    }

    /// Decide what to do about an observation.
    pub(crate) fn decide(&mut self, observation: &Observation) -> Vec<Action> {
        let mut actions = Vec::new();
        match self.current {
            Carrier::Udp => self.decide_on_udp(observation, &mut actions),
            Carrier::WebSocket => self.decide_on_websocket(observation, &mut actions),
        }
        actions
    }

    fn switch_to(&mut self, to: Carrier, now: Instant, reason: String) -> Action {
        self.current = to;
        self.moved = now;
        self.suspicion = None;
        self.cleared = Some(now);
        self.probing.reset_answers();
        if to == Carrier::WebSocket {
            self.provisional = false;
        }
        Action::SwitchTo { to, reason }
    }
}

fn dead_after(rtt: Duration) -> Duration {
    UDP_DEAD_AFTER.max(4 * rtt)
}

/// Silence after which UDP counts as dead, so that a download resumes within 1.5 s; and after which
/// a WebSocket is replaced.
const UDP_DEAD_AFTER: Duration = Duration::from_secs(1);

/// Unanswered transmits that make silence count: QUIC retransmits what must be acknowledged.
const MIN_TRANSMITS: u32 = 2;

/// Interval between decisions while something is going on.
const BUSY_INTERVAL: Duration = Duration::from_millis(50);

/// Longest wait for the next packet while nothing is going on.
const IDLE_INTERVAL: Duration = Duration::from_secs(1);
