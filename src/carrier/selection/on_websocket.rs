//! What to do while a WebSocket is in use.

use std::time::Duration;

use super::dialling::Line;
use super::probing::{PROBE_FAST, PROBE_RARE, PROBE_SLOW};
use super::suspicion::doubt_after;
use super::{Action, Observation, Selector, silent_after};
use crate::carrier::{Carrier, Transport};

impl Selector {
    pub(crate) fn look_from_websocket(&mut self, sight: &Observation, acts: &mut Vec<Action>) {
        let now = sight.now;
        self.dialling.dial_if_due(now, acts);
        let silence = sight.owed.map_or(Duration::ZERO, |owed| now - owed.since);
        if self.dialling.line == Line::Up && silence >= WEBSOCKET_SILENT.max(6 * sight.rtt) {
            acts.push(Action::HangUp);
            let why = format!("silent for {:.1} s", silence.as_secs_f32());
            acts.extend(self.websocket_lost(now, &why));
            return;
        }
        match silence >= silent_after(sight.rtt) {
            true => self.dialling.dial_beside(now, acts),
            false => self.dialling.keep(),
        }
        if self.transport != Transport::Auto {
            return;
        }
        let patience = PROBE_FAST.max(2 * sight.rtt);
        if self.probing.take_answered() {
            self.probing.in_a_row += 1;
            if let Some(reason) = self.reason_to_return(sight, silence) {
                if silence >= silent_after(sight.rtt) {
                    // It must not count as a way out when UDP fails again.
                    self.dialling.lost();
                    acts.push(Action::HangUp);
                }
                acts.push(self.go(Carrier::Udp, now, reason));
                return;
            }
        } else if self.probing.has_waited(patience, now) {
            self.probing.in_a_row = 0;
        }
        let pause = match () {
            () if silence >= doubt_after(sight.rtt) => patience,
            () if self.probing.in_a_row > 0 && now + PROBE_SLOW >= self.moved + self.hold.time => {
                patience
            }
            () if now < self.moved + RARE_AFTER => PROBE_SLOW,
            () => PROBE_RARE,
        };
        self.probing.probe_every(pause, now, acts);
    }

    /// Why to use UDP again, whose probe has just been answered.
    fn reason_to_return(&self, sight: &Observation, silence: Duration) -> Option<String> {
        if silence >= silent_after(sight.rtt) {
            let silence = silence.as_secs_f32();
            return Some(format!("websocket silent for {silence:.1} s, moved to udp"));
        }
        let convinced =
            self.probing.in_a_row >= CONVINCED && sight.now >= self.moved + self.hold.time;
        convinced.then(|| "udp answers again, moved back".into())
    }
}

/// Silence that is death for a WebSocket: TCP repairs losses by itself, slower than QUIC does. Before
/// that another one is dialled, which replaces the silent one if it is the first to come up.
const WEBSOCKET_SILENT: Duration = Duration::from_secs(3);

/// How long UDP is probed often after it was left.
const RARE_AFTER: Duration = Duration::from_secs(20);

/// Probes in a row that must be answered before UDP is used again.
const CONVINCED: u32 = 5;
