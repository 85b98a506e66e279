//! Which carrier to use, decided from what is seen of both and nothing else.
//!
//! Pure: time and evidence come in, [`Action`]s go out. It never assumes that a carrier works because
//! it once did, nor that it is dead because it once was.
//!
//! On UDP: silence while an answer is owed raises suspicion. In suspicion, UDP is probed, a WebSocket is
//! dialled, and once it is there packets take both ways. Silence that lasts is death. On the
//! WebSocket: UDP is probed all the time, and several answers in a row lead back to it.
//!
//! Only an acknowledgement or the answer to a probe shows that packets pass in both directions: an
//! edge that is heard may be repeating itself because it hears nothing.

pub(crate) mod dialling;
pub(crate) mod evidence;
pub(crate) mod hold;
pub(crate) mod on_udp;
pub(crate) mod on_websocket;
pub(crate) mod probe;
pub(crate) mod probing;
pub(crate) mod progress;
pub(crate) mod suspicion;

use std::time::Duration;

use tokio::time::Instant;

use self::dialling::{Dialling, Line};
use self::evidence::Seen;
use self::hold::Hold;
use self::probing::Probing;
use self::progress::Owed;
use self::suspicion::Suspicion;
use super::{Carrier, Transport};

/// What is seen at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Observation {
    pub(crate) now: Instant,
    pub(crate) udp: Seen,
    pub(crate) websocket: Seen,
    /// What was sent over the carrier in use and waits for the edge to acknowledge something.
    pub(crate) owed: Option<Owed>,
    /// When the edge acknowledged something last.
    pub(crate) acked: Option<Instant>,
    pub(crate) rtt: Duration,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Probe UDP.
    Probe,
    /// Dial a WebSocket; the outcome is told by `websocket_up` or `websocket_failed`.
    Dial,
    /// Close the WebSocket, or stop dialling it.
    HangUp,
    /// Send over this carrier from now on.
    Move { to: Carrier, reason: String },
    /// Let the edge hear from us: it may be sending to where we were.
    Speak,
    /// Use a new UDP socket and tell the edge, so that both ends try again at once.
    Refresh,
}

/// Decides for one connection.
#[derive(Debug)]
pub(crate) struct Selector {
    transport: Transport,
    current: Carrier,
    moved: Instant,
    dialling: Dialling,
    suspicion: Option<Suspicion>,
    /// Whether UDP is in use only because the WebSocket was lost.
    provisional: bool,
    /// Silence before this moment has been explained by an answered probe.
    cleared: Option<Instant>,
    /// How long the run of packets was then: the answers to our own question are no new one.
    cleared_run: u32,
    probing: Probing,
    hold: Hold,
}

impl Selector {
    pub(crate) fn new(transport: Transport, current: Carrier, now: Instant) -> Self {
        let line = match current {
            Carrier::Udp => Line::Absent,
            Carrier::WebSocket => Line::Up,
        };
        Self {
            transport,
            current,
            moved: now,
            dialling: Dialling::new(line, now),
            suspicion: None,
            provisional: false,
            cleared: None,
            cleared_run: 0,
            probing: Probing::default(),
            hold: Hold::new(),
        }
    }

    /// Whether packets should take both ways.
    pub(crate) fn in_doubt(&self) -> bool {
        self.suspicion.is_some() || self.provisional
    }

    /// How long nothing will have to be done, if nothing happens.
    pub(crate) fn may_sleep(&self, sight: &Observation) -> Option<Duration> {
        let busy = sight.owed.is_some()
            || match self.current {
                Carrier::Udp => self.in_doubt() || self.silent_since(sight).is_some(),
                Carrier::WebSocket => self.probing.in_a_row > 0,
            };
        (!busy).then_some(CALM)
    }

    /// The time between two looks while something is going on.
    pub(crate) const fn pace() -> Duration {
        BUSY
    }

    /// An address of the edge has answered a probe.
    pub(crate) fn probe_answered(&mut self) {
        self.probing.is_answered();
    }

    /// Whether a WebSocket that was dialled is still of use.
    pub(crate) fn wants_websocket(&self) -> bool {
        self.dialling.is_wanted()
    }

    pub(crate) fn websocket_up(&mut self, now: Instant) -> Vec<Action> {
        self.dialling.succeeded();
        if self.current == Carrier::WebSocket {
            return vec![self.go(Carrier::WebSocket, now, "websocket dialled again".into())];
        }
        match self.suspicion {
            // Both ways now: whichever brings an answer is the one to use.
            Some(_) => vec![Action::Speak],
            None => Vec::new(),
        }
    }

    pub(crate) fn websocket_failed(&mut self, now: Instant) {
        self.dialling.failed(now);
    }

    /// The WebSocket has ended, for the reason given.
    pub(crate) fn websocket_lost(&mut self, now: Instant, why: &str) -> Vec<Action> {
        self.dialling.lost();
        if self.current == Carrier::Udp {
            return Vec::new();
        }
        let mut acts = vec![self.dialling.dial()];
        if self.transport == Transport::Auto {
            self.provisional = true;
            acts.push(self.probing.probe(now));
            acts.push(self.go(
                Carrier::Udp,
                now,
                format!("websocket lost ({why}), moved to udp"),
            ));
        }
        acts
    }

    /// The network is another one, or time has passed unseen.
    pub(crate) fn network_changed(&mut self, now: Instant, what: &str) -> Vec<Action> {
        match (self.transport, self.current) {
            (Transport::Quic, _) | (_, Carrier::Udp) => {
                self.suspicion = Some(Suspicion::new(now));
                let mut acts = vec![Action::Refresh, self.probing.probe(now)];
                if self.dialling.line != Line::Absent {
                    // It was dialled from the network that was.
                    self.dialling.lost();
                    acts.push(Action::HangUp);
                }
                acts
            }
            (_, Carrier::WebSocket) => {
                let mut acts = vec![Action::HangUp];
                acts.extend(self.websocket_lost(now, what));
                acts
            }
        }
    }

    /// Look at the evidence.
    pub(crate) fn decide(&mut self, sight: &Observation) -> Vec<Action> {
        let mut acts = Vec::new();
        match self.current {
            Carrier::Udp => self.look_from_udp(sight, &mut acts),
            Carrier::WebSocket => self.look_from_websocket(sight, &mut acts),
        }
        acts
    }

    fn go(&mut self, to: Carrier, now: Instant, reason: String) -> Action {
        self.current = to;
        self.moved = now;
        self.suspicion = None;
        self.cleared = Some(now);
        self.probing.start_again();
        if to == Carrier::WebSocket {
            self.provisional = false;
        }
        Action::Move { to, reason }
    }
}

fn silent_after(rtt: Duration) -> Duration {
    SILENT.max(4 * rtt)
}

/// Silence that is death on UDP, so that a download goes on within 1.5 s; and that makes a WebSocket
/// worth replacing.
const SILENT: Duration = Duration::from_secs(1);

/// Transmits that must be unanswered for silence to count: what needs an answer is repeated.
const ASKS: u32 = 2;

/// How often to look while something is going on, and while nothing is.
const BUSY: Duration = Duration::from_millis(50);

const CALM: Duration = Duration::from_secs(1);
