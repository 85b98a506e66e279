//! Decisions while a WebSocket is in use.

use std::time::Duration;

use super::dialer::WebSocketState;
use super::probing::{FAST_PROBE_INTERVAL, RARE_PROBE_INTERVAL, SLOW_PROBE_INTERVAL};
use super::suspicion::suspect_after;
use super::{Action, Observation, Selector, dead_after};
use crate::carrier::{Carrier, Transport};

impl Selector {
    /// Decide what to do about an observation while a WebSocket is in use.
    pub(crate) fn decide_on_websocket(
        &mut self,
        observation: &Observation,
        actions: &mut Vec<Action>,
    ) {
        let now = observation.now;
        self.dialer.dial_if_due(now, actions);
        let silence = observation
            .unacked
            .map_or(Duration::ZERO, |unacked| now - unacked.since);
        if self.dialer.state == WebSocketState::Up
            && silence >= WEBSOCKET_DEAD_AFTER.max(6 * observation.rtt)
        {
            actions.push(Action::CloseWebSocket);
            let why = format!("silent for {:.1} s", silence.as_secs_f32());
            actions.extend(self.websocket_lost(now, &why));
            return;
        }
        match silence >= dead_after(observation.rtt) {
            true => self.dialer.dial_replacement(now, actions),
            false => self.dialer.cancel_replacement(),
        }
        if self.transport != Transport::Auto {
            return;
        }
        let timeout = FAST_PROBE_INTERVAL.max(2 * observation.rtt);
        if self.probing.take_answered() {
            self.probing.consecutive_answers += 1;
            if let Some(reason) = self.reason_to_return(observation, silence) {
                if silence >= dead_after(observation.rtt) {
                    // It must not count as a fallback when UDP fails again.
                    self.dialer.lost();
                    actions.push(Action::CloseWebSocket);
                }
                actions.push(self.switch_to(Carrier::Udp, now, reason));
                return;
            }
        } else if self.probing.has_waited(timeout, now) {
            self.probing.consecutive_answers = 0;
        }
        let interval = match () {
            () if silence >= suspect_after(observation.rtt) => timeout,
            () if self.probing.consecutive_answers > 0
                && now + SLOW_PROBE_INTERVAL >= self.moved + self.hold_down.time =>
            {
                timeout
            }
            () if now < self.moved + RARE_PROBES_AFTER => SLOW_PROBE_INTERVAL,
            () => RARE_PROBE_INTERVAL,
        };
        self.probing.probe_every(interval, now, actions);
    }

    /// Return the reason to use UDP again after its probe was answered, if there is one.
    fn reason_to_return(&self, observation: &Observation, silence: Duration) -> Option<String> {
        if silence >= dead_after(observation.rtt) {
            let silence = silence.as_secs_f32();
            return Some(format!("websocket silent for {silence:.1} s, moved to udp"));
        }
        let convinced = self.probing.consecutive_answers >= ANSWERS_TO_RETURN
            && observation.now >= self.moved + self.hold_down.time;
        convinced.then(|| "udp answers again, moved back".into())
    }
}

/// Silence after which a WebSocket counts as dead: TCP retransmits more slowly than QUIC does.
/// Before that another one is dialled, which replaces the silent one if it is the first to come up.
const WEBSOCKET_DEAD_AFTER: Duration = Duration::from_secs(3);

/// Time after leaving UDP during which it is probed often.
const RARE_PROBES_AFTER: Duration = Duration::from_secs(20);

/// Consecutive answered probes that lead back to UDP.
const ANSWERS_TO_RETURN: u32 = 5;
