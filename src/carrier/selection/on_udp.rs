//! Decisions while UDP is in use.

use std::time::Duration;

use tokio::time::Instant;

use super::dialer::WebSocketState;
use super::hold_down::{MAX_HOLD, MAX_HOLD_BLOCKED};
use super::probing::FAST_PROBE_INTERVAL;
use super::suspicion::{Suspicion, suspect_after};
use super::{Action, MIN_TRANSMITS, Observation, Selector, dead_after};
use crate::carrier::{Carrier, Transport};

impl Selector {
    /// Decide what to do about an observation while UDP is in use.
    pub(crate) fn decide_on_udp(&mut self, observation: &Observation, actions: &mut Vec<Action>) {
        let now = observation.now;
        let answered = self.probing.take_answered();
        if self.provisional && self.decide_on_provisional_udp(observation, answered, actions) {
            return;
        }
        if self
            .suspicion
            .is_some_and(|suspicion| is_refuted(&suspicion, observation))
        {
            self.clear_suspicion(now, actions);
        }
        let silent = self.silent_since(observation);
        let silence = silent.map_or(Duration::ZERO, |silent| now - silent);
        if self.suspicion.is_none() && silence < suspect_after(observation.rtt) {
            self.close_unneeded_websocket(now, actions);
            return;
        }
        let mut suspicion = self.suspicion.unwrap_or(Suspicion::new(now));
        if answered {
            if suspicion.has_lasted(now) {
                actions.push(Action::Rebind);
            }
            suspicion.probe_answered(now);
            if silent.is_none() || transmits(observation) < MIN_TRANSMITS {
                actions.push(Action::Announce);
                self.cleared = Some(now);
                self.cleared_run = observation.udp.run;
                self.suspicion = None;
                return;
            }
        }
        let interval = suspicion.probe_interval(now, observation.rtt);
        if self.probing.probe_every(interval, now, actions) {
            suspicion.probes += 1;
        }
        self.suspicion = Some(suspicion);
        if self.transport == Transport::Auto {
            self.consider_websocket(observation, suspicion, silence, actions);
        }
    }

    /// Decide while UDP is in use only because the WebSocket was lost, and may or may not work.
    /// Returns whether another WebSocket is up and now in use.
    fn decide_on_provisional_udp(
        &mut self,
        observation: &Observation,
        answered: bool,
        actions: &mut Vec<Action>,
    ) -> bool {
        let now = observation.now;
        if answered
            || observation
                .last_acked
                .is_some_and(|acked| acked > self.moved)
        {
            self.provisional = false;
        } else if self.dialer.state == WebSocketState::Up {
            self.provisional = false;
            actions.push(self.switch_to(Carrier::WebSocket, now, "websocket dialled again".into()));
            return true;
        } else {
            self.probing.probe_every(FAST_PROBE_INTERVAL, now, actions);
            self.dialer.dial_if_due(now, actions);
        }
        false
    }

    fn consider_websocket(
        &mut self,
        observation: &Observation,
        suspicion: Suspicion,
        silence: Duration,
        actions: &mut Vec<Action>,
    ) {
        let now = observation.now;
        let blocked = silence >= BLOCKED_AFTER.max(6 * observation.rtt)
            && transmits(observation) >= BLOCKED_TRANSMITS;
        let probe_silence = now - suspicion.last_sign_of_life();
        if blocked || probe_silence >= dial_after(observation.rtt) {
            self.dialer.dial_if_due(now, actions);
        }
        if self.dialer.state != WebSocketState::Up {
            return;
        }
        let dead = suspicion.probes > 1
            && probe_silence >= FAST_PROBE_INTERVAL.max(observation.rtt)
            && (silence.max(probe_silence) >= dead_after(observation.rtt)
                || is_elsewhere(&suspicion, observation));
        if dead || blocked {
            let silence = silence.max(probe_silence).as_secs_f32();
            let reason = format!("udp silent for {silence:.1} s, moved to websocket");
            actions.push(self.switch_to(Carrier::WebSocket, now, reason));
            self.hold_down
                .udp_has_failed(now, if dead { MAX_HOLD } else { MAX_HOLD_BLOCKED });
        }
    }

    /// Return the start of a silence on UDP that cannot be explained.
    pub(crate) fn silent_since(&self, observation: &Observation) -> Option<Instant> {
        if let Some(unacked) = observation
            .unacked
            .filter(|unacked| unacked.transmits >= MIN_TRANSMITS)
        {
            return Some(unacked.since);
        }
        let run = match observation.udp.run >= self.cleared_run {
            true => observation.udp.run - self.cleared_run,
            false => observation.udp.run,
        };
        let received = observation
            .udp
            .last_received
            .filter(|_| run >= SUSPICIOUS_RUN)?;
        self.cleared
            .is_none_or(|cleared| cleared < received)
            .then_some(received)
    }

    /// Drop the suspicion: UDP works after all.
    fn clear_suspicion(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if self
            .suspicion
            .take()
            .is_some_and(|suspicion| suspicion.has_lasted(now))
        {
            actions.push(Action::Rebind);
        }
    }

    /// Close a WebSocket that is not needed.
    fn close_unneeded_websocket(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let needless = match self.dialer.state {
            WebSocketState::Absent => false,
            WebSocketState::Dialling => !self.provisional,
            WebSocketState::Up => now >= self.moved + UNUSED_WEBSOCKET_TIMEOUT,
        };
        if needless {
            self.dialer.lost();
            actions.push(Action::CloseWebSocket);
        }
    }
}

/// Report whether packets pass over UDP in both directions after all. A packet from the edge is no
/// proof: it retransmits what is not acknowledged.
fn is_refuted(suspicion: &Suspicion, observation: &Observation) -> bool {
    let acked = observation
        .last_acked
        .is_some_and(|acked| acked > suspicion.raised);
    acked && !is_elsewhere(suspicion, observation)
}

/// Report whether the edge has answered over the WebSocket what was sent over both.
fn is_elsewhere(suspicion: &Suspicion, observation: &Observation) -> bool {
    let received = observation.websocket.last_received;
    received.is_some_and(|received| received > suspicion.raised)
}

fn transmits(observation: &Observation) -> u32 {
    observation.unacked.map_or(0, |unacked| unacked.transmits)
}

/// Return how long a probe may go unanswered before a WebSocket is dialled.
fn dial_after(rtt: Duration) -> Duration {
    (2 * rtt).max(MIN_DIAL_DELAY)
}

/// Silence after which our flow counts as blocked although probes are answered: something on the
/// path lets unknown packets pass but not ours. Needs [`BLOCKED_TRANSMITS`] without an answer, too.
const BLOCKED_AFTER: Duration = Duration::from_millis(2500);

/// Unanswered transmits that a blocked flow has at least.
const BLOCKED_TRANSMITS: u32 = 4;

/// Shortest time that a probe goes unanswered before a WebSocket is dialled: its three round trips
/// are a good part of the time that there is.
const MIN_DIAL_DELAY: Duration = Duration::from_millis(100);

/// Packets in one run after which a pause is suspicious although everything of ours is
/// acknowledged: the edge may be the one that waits. Shorter runs are keep-alives and short
/// requests, not worth a probe each.
const SUSPICIOUS_RUN: u32 = 8;

/// Time after UDP's recovery until an unused WebSocket is closed.
const UNUSED_WEBSOCKET_TIMEOUT: Duration = Duration::from_secs(20);
