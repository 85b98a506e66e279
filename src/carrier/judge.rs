//! Which carrier to use, decided from what is seen of both and nothing else.
//!
//! Pure: time and evidence come in, [`Act`]s go out. It never assumes that a carrier works because
//! it once did, nor that it is dead because it once was.
//!
//! On UDP: silence while an answer is owed raises doubt. In doubt, UDP is probed, a WebSocket is
//! dialled, and once it is there packets take both ways. Silence that lasts is death. On the
//! WebSocket: UDP is probed all the time, and several answers in a row lead back to it.

use std::time::Duration;

use tokio::time::Instant;

use super::{Carrier, Transport, evidence::Seen};

/// Silence that raises doubt: beyond the second repetition of a lost packet on most paths.
const DOUBT: Duration = Duration::from_millis(400);

/// Silence that is death on UDP, so that a download goes on within 1.5 s.
const SILENT: Duration = Duration::from_secs(1);

/// Silence that is death although probes are answered: something on the way lets unknown packets
/// pass but not ours. Needs this many transmits without an answer, too.
const DEAF: Duration = Duration::from_millis(2500);
const DEAF_ASKS: u32 = 4;

/// Silence that is death for a WebSocket. TCP repairs losses by itself, slower than QUIC does.
const WEBSOCKET_SILENT: Duration = Duration::from_secs(3);

/// Transmits that must be unanswered for silence to count: what needs an answer is repeated, an
/// acknowledgement is not.
const ASKS: u32 = 2;

/// Packets in one run after which a pause is suspicious although nothing of ours is unanswered: the
/// edge may be the one that waits. Fewer are keep-alives and short requests, not worth a probe each.
const RUN: u32 = 8;

/// Between probes in doubt, and between those that confirm an answer.
const PROBE_FAST: Duration = Duration::from_millis(200);

/// Between probes while UDP does not answer: 1 s at first, then rarer for networks where it is
/// blocked for good. The former, too, between probes that are answered while the connection is not.
const PROBE_SLOW: Duration = Duration::from_secs(1);
const PROBE_RARE: Duration = Duration::from_secs(5);
const RARE_AFTER: Duration = Duration::from_secs(20);

/// Probes in a row that must be answered before UDP is used again.
const CONVINCED: u32 = 5;

/// How long to stay on a WebSocket at least. Doubled, up to the second figure, each time that UDP
/// failed again within [`FLAPPING`]: a healed network is used within half a minute all the same.
const HOLD: Duration = Duration::from_secs(2);
const HOLD_MAX: Duration = Duration::from_secs(16);
const FLAPPING: Duration = Duration::from_secs(60);

/// What the doubling goes up to when UDP was deaf: its probes do not tell the truth.
const HOLD_DEAF: Duration = Duration::from_secs(300);

/// How long an unused WebSocket is kept after UDP has come back.
const LINGER: Duration = Duration::from_secs(20);

/// Pause after the first failed dial, doubled up to the second figure: an edge that is restarted must
/// be found within a second of its return, and a connection that finds none ends after 15 s.
const REDIAL: Duration = Duration::from_millis(125);
const REDIAL_MAX: Duration = Duration::from_millis(500);

/// How often to look while something is going on, and while nothing is.
const BUSY: Duration = Duration::from_millis(50);
const CALM: Duration = Duration::from_secs(1);

/// What is seen at one moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sight {
    pub(super) now: Instant,
    pub(super) udp: Seen,
    pub(super) websocket: Seen,
    pub(super) rtt: Duration,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Act {
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

/// The state of the WebSocket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line {
    Absent,
    Dialling,
    Up,
}

/// Doubt about UDP while it is in use.
#[derive(Clone, Copy, Debug)]
struct Doubt {
    raised: Instant,
    /// Probes sent since the last answer.
    probes: u32,
    answered: Option<Instant>,
}

impl Doubt {
    fn new(now: Instant) -> Self {
        Self {
            raised: now,
            probes: 0,
            answered: None,
        }
    }

    /// Since when there is no sign of life at all.
    fn lifeless(&self) -> Instant {
        self.answered.unwrap_or(self.raised)
    }

    fn just_answered(&self, now: Instant) -> bool {
        self.answered
            .is_some_and(|answered| now < answered + PROBE_SLOW)
    }
}

/// Decides for one connection.
#[derive(Debug)]
pub(super) struct Judge {
    transport: Transport,
    current: Carrier,
    moved: Instant,
    line: Line,
    doubt: Option<Doubt>,
    /// Whether UDP is in use only because the WebSocket was lost.
    stopgap: bool,
    /// Silence before this moment has been explained by an answered probe.
    cleared: Option<Instant>,
    /// How long the run of packets was then: the answers to our own question are no new one.
    cleared_run: u32,
    probed: Option<Instant>,
    /// Whether the latest probe still waits for its answer.
    waiting: bool,
    /// Whether a probe has been answered since the last look.
    answered: bool,
    /// Probes answered in a row.
    answers: u32,
    hold: Duration,
    udp_failed: Option<Instant>,
    dial_after: Instant,
    redial: Duration,
}

impl Judge {
    pub(super) fn new(transport: Transport, current: Carrier, now: Instant) -> Self {
        Self {
            transport,
            current,
            moved: now,
            line: match current {
                Carrier::Udp => Line::Absent,
                Carrier::WebSocket => Line::Up,
            },
            doubt: None,
            stopgap: false,
            cleared: None,
            cleared_run: 0,
            probed: None,
            waiting: false,
            answered: false,
            answers: 0,
            hold: HOLD,
            udp_failed: None,
            dial_after: now,
            redial: REDIAL,
        }
    }

    /// Whether packets should take both ways.
    pub(super) fn in_doubt(&self) -> bool {
        self.doubt.is_some() || self.stopgap
    }

    /// How long nothing will have to be done, if nothing happens.
    pub(super) fn may_sleep(&self, sight: &Sight) -> Option<Duration> {
        let busy = match self.current {
            Carrier::Udp => {
                self.in_doubt() || self.silent_since(sight).is_some() || sight.udp.asked.is_some()
            }
            Carrier::WebSocket => self.answers > 0 || sight.websocket.asked.is_some(),
        };
        (!busy).then_some(CALM)
    }

    /// How long to wait between two looks while something is going on.
    pub(super) const fn pace() -> Duration {
        BUSY
    }

    /// An address of the edge has answered a probe.
    pub(super) fn probe_answered(&mut self) {
        self.answered |= std::mem::take(&mut self.waiting);
    }

    pub(super) fn websocket_up(&mut self, now: Instant) -> Vec<Act> {
        self.line = Line::Up;
        self.redial = REDIAL;
        if self.current == Carrier::WebSocket {
            return vec![self.go(Carrier::WebSocket, now, "websocket dialled again".into())];
        }
        Vec::new()
    }

    pub(super) fn websocket_failed(&mut self, now: Instant) {
        self.line = Line::Absent;
        self.dial_after = now + self.redial;
        self.redial = (self.redial * 2).min(REDIAL_MAX);
    }

    /// The WebSocket has ended, for the reason given.
    pub(super) fn websocket_lost(&mut self, now: Instant, why: &str) -> Vec<Act> {
        self.line = Line::Absent;
        if self.current == Carrier::Udp {
            return Vec::new();
        }
        self.dial_after = now;
        let mut acts = vec![self.dial()];
        if self.transport == Transport::Auto {
            self.stopgap = true;
            acts.push(self.probe(now));
            acts.push(self.go(
                Carrier::Udp,
                now,
                format!("websocket lost ({why}), moved to udp"),
            ));
        }
        acts
    }

    /// The network is another one, or time has passed unseen.
    pub(super) fn network_changed(&mut self, now: Instant, what: &str) -> Vec<Act> {
        match (self.transport, self.current) {
            (Transport::Quic, _) | (_, Carrier::Udp) => {
                self.doubt = Some(Doubt::new(now));
                vec![Act::Refresh, self.probe(now)]
            }
            (_, Carrier::WebSocket) => {
                let mut acts = vec![Act::HangUp];
                acts.extend(self.websocket_lost(now, what));
                acts
            }
        }
    }

    /// Look at the evidence.
    pub(super) fn look(&mut self, sight: &Sight) -> Vec<Act> {
        let mut acts = Vec::new();
        match self.current {
            Carrier::Udp => self.look_from_udp(sight, &mut acts),
            Carrier::WebSocket => self.look_from_websocket(sight, &mut acts),
        }
        acts
    }

    fn look_from_udp(&mut self, sight: &Sight, acts: &mut Vec<Act>) {
        let now = sight.now;
        let answered = std::mem::take(&mut self.answered);
        if self.stopgap {
            if answered || sight.udp.heard.is_some_and(|heard| heard > self.moved) {
                self.stopgap = false;
            } else if self.line == Line::Up {
                self.stopgap = false;
                acts.push(self.go(Carrier::WebSocket, now, "websocket dialled again".into()));
                return;
            } else {
                self.probe_every(PROBE_FAST, now, acts);
                self.dial_if_due(now, acts);
            }
        }
        if self
            .doubt
            .is_some_and(|doubt| sight.udp.heard.is_some_and(|heard| heard > doubt.raised))
        {
            self.relieve(now, acts);
        }
        let silent = self.silent_since(sight);
        let silence = silent.map_or(Duration::ZERO, |silent| now - silent);
        if self.doubt.is_none() && silence < doubt_after(sight.rtt) {
            self.tidy(now, acts);
            return;
        }
        let mut doubt = self.doubt.unwrap_or(Doubt::new(now));
        if answered {
            if now >= doubt.lifeless() + SILENT {
                // Both ends are waiting for timeouts that have grown long.
                acts.push(Act::Refresh);
            }
            doubt.answered = Some(now);
            doubt.probes = 0;
            if silent.is_none() || sight.udp.asks < ASKS {
                acts.push(Act::Speak);
                self.cleared = Some(now);
                self.cleared_run = sight.udp.run;
                self.doubt = None;
                return;
            }
        }
        let pause = match doubt.just_answered(now) {
            true => PROBE_SLOW,
            false => PROBE_FAST.max(sight.rtt),
        };
        if self.probe_every(pause, now, acts) {
            doubt.probes += 1;
        }
        self.doubt = Some(doubt);
        if self.transport == Transport::Auto {
            self.look_for_a_way_out(sight, doubt, silence, acts);
        }
    }

    fn look_for_a_way_out(
        &mut self,
        sight: &Sight,
        doubt: Doubt,
        silence: Duration,
        acts: &mut Vec<Act>,
    ) {
        let now = sight.now;
        let deaf = silence >= DEAF.max(6 * sight.rtt) && sight.udp.asks >= DEAF_ASKS;
        if deaf || doubt.probes > 1 {
            self.dial_if_due(now, acts);
        }
        if self.line != Line::Up {
            return;
        }
        let elsewhere = sight
            .websocket
            .heard
            .is_some_and(|heard| heard > doubt.raised);
        let lifeless = now - doubt.lifeless();
        let dead = doubt.probes > 1
            && lifeless >= PROBE_FAST.max(sight.rtt)
            && (silence.max(lifeless) >= silent_after(sight.rtt) || elsewhere);
        if dead || deaf {
            let silence = silence.max(lifeless).as_secs_f32();
            let reason = format!("udp silent for {silence:.1} s, moved to websocket");
            acts.push(self.go(Carrier::WebSocket, now, reason));
            self.udp_has_failed(now, if dead { HOLD_MAX } else { HOLD_DEAF });
        }
    }

    fn look_from_websocket(&mut self, sight: &Sight, acts: &mut Vec<Act>) {
        let now = sight.now;
        if self.line == Line::Absent {
            self.dial_if_due(now, acts);
        }
        let silence = sight
            .websocket
            .asked
            .map_or(Duration::ZERO, |asked| now - asked);
        if self.line == Line::Up && silence >= WEBSOCKET_SILENT.max(6 * sight.rtt) {
            acts.push(Act::HangUp);
            let why = format!("silent for {:.1} s", silence.as_secs_f32());
            acts.extend(self.websocket_lost(now, &why));
            return;
        }
        if self.transport != Transport::Auto {
            return;
        }
        let patience = PROBE_FAST.max(2 * sight.rtt);
        if std::mem::take(&mut self.answered) {
            self.answers += 1;
            let needed = if silence >= SILENT.max(3 * sight.rtt) {
                1
            } else {
                CONVINCED
            };
            if self.answers >= needed && (needed == 1 || now >= self.moved + self.hold) {
                let reason = match needed {
                    1 => format!(
                        "websocket silent for {:.1} s, moved to udp",
                        silence.as_secs_f32()
                    ),
                    _ => "udp answers again, moved back".into(),
                };
                acts.push(self.go(Carrier::Udp, now, reason));
                return;
            }
        } else if self.waiting && self.probed.is_some_and(|probed| now >= probed + patience) {
            self.answers = 0;
        }
        let pause = match () {
            () if silence >= doubt_after(sight.rtt) => patience,
            () if self.answers > 0 && now + PROBE_SLOW >= self.moved + self.hold => patience,
            () if now < self.moved + RARE_AFTER => PROBE_SLOW,
            () => PROBE_RARE,
        };
        self.probe_every(pause, now, acts);
    }

    /// Since when UDP has been silent although it should not be.
    fn silent_since(&self, sight: &Sight) -> Option<Instant> {
        if sight.udp.asks >= ASKS {
            return sight.udp.asked;
        }
        let run = match sight.udp.run >= self.cleared_run {
            true => sight.udp.run - self.cleared_run,
            false => sight.udp.run,
        };
        let heard = sight.udp.heard.filter(|_| run >= RUN)?;
        self.cleared
            .is_none_or(|cleared| cleared < heard)
            .then_some(heard)
    }

    /// UDP is heard again.
    fn relieve(&mut self, now: Instant, acts: &mut Vec<Act>) {
        if self
            .doubt
            .take()
            .is_some_and(|doubt| now >= doubt.lifeless() + SILENT)
        {
            acts.push(Act::Refresh);
        }
    }

    /// Let go of a WebSocket that is not needed.
    fn tidy(&mut self, now: Instant, acts: &mut Vec<Act>) {
        let needless = match self.line {
            Line::Absent => false,
            Line::Dialling => !self.stopgap,
            Line::Up => now >= self.moved + LINGER,
        };
        if needless {
            self.line = Line::Absent;
            acts.push(Act::HangUp);
        }
    }

    fn udp_has_failed(&mut self, now: Instant, longest: Duration) {
        let again = self
            .udp_failed
            .is_some_and(|failed| now < failed + self.hold + FLAPPING);
        self.hold = match again {
            true => (self.hold * 2).min(longest),
            false => HOLD,
        };
        self.udp_failed = Some(now);
    }

    fn go(&mut self, to: Carrier, now: Instant, reason: String) -> Act {
        self.current = to;
        self.moved = now;
        self.doubt = None;
        self.cleared = Some(now);
        self.answered = false;
        self.answers = 0;
        if to == Carrier::WebSocket {
            self.stopgap = false;
        }
        Act::Move { to, reason }
    }

    fn dial(&mut self) -> Act {
        self.line = Line::Dialling;
        Act::Dial
    }

    fn dial_if_due(&mut self, now: Instant, acts: &mut Vec<Act>) {
        if self.line == Line::Absent && now >= self.dial_after {
            acts.push(self.dial());
        }
    }

    fn probe(&mut self, now: Instant) -> Act {
        self.probed = Some(now);
        self.waiting = true;
        Act::Probe
    }

    fn probe_every(&mut self, pause: Duration, now: Instant, acts: &mut Vec<Act>) -> bool {
        let due = self.probed.is_none_or(|probed| now >= probed + pause);
        if due {
            acts.push(self.probe(now));
        }
        due
    }
}

fn doubt_after(rtt: Duration) -> Duration {
    DOUBT.max(3 * rtt)
}

fn silent_after(rtt: Duration) -> Duration {
    SILENT.max(4 * rtt)
}
