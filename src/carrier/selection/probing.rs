//! Probes of UDP, and their answers.

use std::time::Duration;

use tokio::time::Instant;

use super::Action;

/// State of the probes of UDP.
#[derive(Debug, Default)]
pub(crate) struct Probing {
    probed: Option<Instant>,
    /// Set while the latest probe is unanswered.
    waiting: bool,
    /// Set when a probe has been answered since the last [`Self::take_answered`].
    answered: bool,
    /// Consecutive answered probes.
    pub(crate) consecutive_answers: u32,
}

impl Probing {
    /// Send a probe now.
    pub(crate) fn probe(&mut self, now: Instant) -> Action {
        self.probed = Some(now);
        self.waiting = true;
        Action::Probe
    }

    /// Send a probe if the previous one was sent `interval` ago. Report whether it was due.
    pub(crate) fn probe_every(
        &mut self,
        interval: Duration,
        now: Instant,
        actions: &mut Vec<Action>,
    ) -> bool {
        let due = self.probed.is_none_or(|probed| now >= probed + interval);
        if due {
            actions.push(self.probe(now));
        }
        due
    }

    /// Record an answer, if the latest probe waits for one.
    pub(crate) fn answer_received(&mut self) {
        self.answered |= std::mem::take(&mut self.waiting);
    }

    /// Report whether a probe has been answered since the previous call, and clear that.
    pub(crate) fn take_answered(&mut self) -> bool {
        std::mem::take(&mut self.answered)
    }

    /// Report whether the latest probe has been unanswered for `timeout`.
    pub(crate) fn has_waited(&self, timeout: Duration, now: Instant) -> bool {
        self.waiting && self.probed.is_some_and(|probed| now >= probed + timeout)
    }

    /// Reset the count of answers.
    pub(crate) fn reset_answers(&mut self) {
        self.answered = false;
        self.consecutive_answers = 0;
    }
}

/// Interval between probes under suspicion, and between those that confirm an answer.
pub(crate) const FAST_PROBE_INTERVAL: Duration = Duration::from_millis(200);

/// Interval between probes while UDP does not answer: first this, then [`RARE_PROBE_INTERVAL`], for
/// networks where UDP is blocked for good. This is also the interval between probes that are
/// answered while the connection is not.
pub(crate) const SLOW_PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// Interval between probes once UDP has not answered for a while.
pub(crate) const RARE_PROBE_INTERVAL: Duration = Duration::from_secs(5);
