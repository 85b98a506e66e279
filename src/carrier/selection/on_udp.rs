//! What to do while UDP is in use.

use std::time::Duration;

use tokio::time::Instant;

use super::dialling::Line;
use super::hold::{HOLD_DEAF, HOLD_MAX};
use super::probing::PROBE_FAST;
use super::suspicion::{Suspicion, doubt_after};
use super::{ASKS, Action, Observation, Selector, silent_after};
use crate::carrier::{Carrier, Transport};

impl Selector {
    pub(crate) fn look_from_udp(&mut self, sight: &Observation, acts: &mut Vec<Action>) {
        let now = sight.now;
        let answered = self.probing.take_answered();
        if self.provisional && self.look_for_better_than_a_stopgap(sight, answered, acts) {
            return;
        }
        if self
            .suspicion
            .is_some_and(|suspicion| is_refuted(&suspicion, sight))
        {
            self.relieve(now, acts);
        }
        let silent = self.silent_since(sight);
        let silence = silent.map_or(Duration::ZERO, |silent| now - silent);
        if self.suspicion.is_none() && silence < doubt_after(sight.rtt) {
            self.tidy(now, acts);
            return;
        }
        let mut suspicion = self.suspicion.unwrap_or(Suspicion::new(now));
        if answered {
            if suspicion.has_lasted(now) {
                acts.push(Action::Refresh);
            }
            suspicion.probe_answered(now);
            if silent.is_none() || asks(sight) < ASKS {
                acts.push(Action::Speak);
                self.cleared = Some(now);
                self.cleared_run = sight.udp.run;
                self.suspicion = None;
                return;
            }
        }
        let pause = suspicion.pause(now, sight.rtt);
        if self.probing.probe_every(pause, now, acts) {
            suspicion.probes += 1;
        }
        self.suspicion = Some(suspicion);
        if self.transport == Transport::Auto {
            self.look_for_a_way_out(sight, suspicion, silence, acts);
        }
    }

    /// The WebSocket was lost and UDP may or may not work. Returns whether there is another one.
    fn look_for_better_than_a_stopgap(
        &mut self,
        sight: &Observation,
        answered: bool,
        acts: &mut Vec<Action>,
    ) -> bool {
        let now = sight.now;
        if answered || sight.acked.is_some_and(|acked| acked > self.moved) {
            self.provisional = false;
        } else if self.dialling.line == Line::Up {
            self.provisional = false;
            acts.push(self.go(Carrier::WebSocket, now, "websocket dialled again".into()));
            return true;
        } else {
            self.probing.probe_every(PROBE_FAST, now, acts);
            self.dialling.dial_if_due(now, acts);
        }
        false
    }

    fn look_for_a_way_out(
        &mut self,
        sight: &Observation,
        suspicion: Suspicion,
        silence: Duration,
        acts: &mut Vec<Action>,
    ) {
        let now = sight.now;
        let deaf = silence >= DEAF.max(6 * sight.rtt) && asks(sight) >= DEAF_ASKS;
        let lifeless = now - suspicion.lifeless();
        if deaf || lifeless >= dial_after(sight.rtt) {
            self.dialling.dial_if_due(now, acts);
        }
        if self.dialling.line != Line::Up {
            return;
        }
        let dead = suspicion.probes > 1
            && lifeless >= PROBE_FAST.max(sight.rtt)
            && (silence.max(lifeless) >= silent_after(sight.rtt)
                || is_elsewhere(&suspicion, sight));
        if dead || deaf {
            let silence = silence.max(lifeless).as_secs_f32();
            let reason = format!("udp silent for {silence:.1} s, moved to websocket");
            acts.push(self.go(Carrier::WebSocket, now, reason));
            self.hold
                .udp_has_failed(now, if dead { HOLD_MAX } else { HOLD_DEAF });
        }
    }

    /// Since when UDP has been silent although it should not be.
    pub(crate) fn silent_since(&self, sight: &Observation) -> Option<Instant> {
        if let Some(owed) = sight.owed.filter(|owed| owed.asks >= ASKS) {
            return Some(owed.since);
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

    /// UDP works after all.
    fn relieve(&mut self, now: Instant, acts: &mut Vec<Action>) {
        if self
            .suspicion
            .take()
            .is_some_and(|suspicion| suspicion.has_lasted(now))
        {
            acts.push(Action::Refresh);
        }
    }

    /// Let go of a WebSocket that is not needed.
    fn tidy(&mut self, now: Instant, acts: &mut Vec<Action>) {
        let needless = match self.dialling.line {
            Line::Absent => false,
            Line::Dialling => !self.provisional,
            Line::Up => now >= self.moved + LINGER,
        };
        if needless {
            self.dialling.lost();
            acts.push(Action::HangUp);
        }
    }
}

/// Whether packets pass over UDP in both directions after all. To hear the edge is no proof: it
/// repeats what it does not hear an answer to.
fn is_refuted(suspicion: &Suspicion, sight: &Observation) -> bool {
    let acked = sight.acked.is_some_and(|acked| acked > suspicion.raised);
    acked && !is_elsewhere(suspicion, sight)
}

/// Whether the edge has answered over the WebSocket what was sent both ways.
fn is_elsewhere(suspicion: &Suspicion, sight: &Observation) -> bool {
    let heard = sight.websocket.heard;
    heard.is_some_and(|heard| heard > suspicion.raised)
}

fn asks(sight: &Observation) -> u32 {
    sight.owed.map_or(0, |owed| owed.asks)
}

/// How long a probe may go unanswered before a WebSocket is dialled.
fn dial_after(rtt: Duration) -> Duration {
    (2 * rtt).max(DIAL)
}

/// Silence that is death although probes are answered: something on the way lets unknown packets
/// pass but not ours. Needs this many transmits without an answer, too.
const DEAF: Duration = Duration::from_millis(2500);

const DEAF_ASKS: u32 = 4;

/// How long a probe may go unanswered at least before a WebSocket is dialled, whose three round trips
/// are a good part of the time that there is.
const DIAL: Duration = Duration::from_millis(100);

/// Packets in one run after which a pause is suspicious although nothing of ours is unanswered: the
/// edge may be the one that waits. Fewer are keep-alives and short requests, not worth a probe each.
const RUN: u32 = 8;

/// How long an unused WebSocket is kept after UDP has come back.
const LINGER: Duration = Duration::from_secs(20);
