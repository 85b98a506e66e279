//! Which probes of UDP were sent and answered.

use std::time::Duration;

use tokio::time::Instant;

use super::Action;

#[derive(Debug, Default)]
pub(crate) struct Probing {
    probed: Option<Instant>,
    /// Whether the latest probe still waits for its answer.
    waiting: bool,
    /// Whether a probe has been answered since the last look.
    answered: bool,
    /// Probes answered in a row.
    pub(crate) in_a_row: u32,
}

impl Probing {
    pub(crate) fn probe(&mut self, now: Instant) -> Action {
        self.probed = Some(now);
        self.waiting = true;
        Action::Probe
    }

    pub(crate) fn probe_every(
        &mut self,
        pause: Duration,
        now: Instant,
        acts: &mut Vec<Action>,
    ) -> bool {
        let due = self.probed.is_none_or(|probed| now >= probed + pause);
        if due {
            acts.push(self.probe(now));
        }
        due
    }

    pub(crate) fn is_answered(&mut self) {
        self.answered |= std::mem::take(&mut self.waiting);
    }

    /// Take whether a probe has been answered since this was asked last.
    pub(crate) fn take_answered(&mut self) -> bool {
        std::mem::take(&mut self.answered)
    }

    /// Whether the latest probe has waited for longer than this.
    pub(crate) fn has_waited(&self, patience: Duration, now: Instant) -> bool {
        self.waiting && self.probed.is_some_and(|probed| now >= probed + patience)
    }

    /// Count answers anew.
    pub(crate) fn start_again(&mut self) {
        self.answered = false;
        self.in_a_row = 0;
    }
}

/// Between probes in suspicion, and between those that confirm an answer.
pub(crate) const PROBE_FAST: Duration = Duration::from_millis(200);

/// Between probes while UDP does not answer: 1 s at first, then rarer for networks where it is
/// blocked for good. The former, too, between probes that are answered while the connection is not.
pub(crate) const PROBE_SLOW: Duration = Duration::from_secs(1);

pub(crate) const PROBE_RARE: Duration = Duration::from_secs(5);
