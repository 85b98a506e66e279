//! Whether there is a WebSocket, and when the next one may be dialled.

use std::time::Duration;

use tokio::time::Instant;

use super::Action;

/// The state of the WebSocket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Line {
    Absent,
    Dialling,
    Up,
}

#[derive(Debug)]
pub(crate) struct Dialling {
    pub(crate) line: Line,
    /// Whether another one is being dialled beside the one that there is.
    beside: bool,
    after: Instant,
    pause: Duration,
}

impl Dialling {
    pub(crate) fn new(line: Line, now: Instant) -> Self {
        Self {
            line,
            beside: false,
            after: now,
            pause: REDIAL,
        }
    }

    pub(crate) fn succeeded(&mut self) {
        self.line = Line::Up;
        self.beside = false;
        self.pause = REDIAL;
    }

    pub(crate) fn failed(&mut self, now: Instant) {
        if !std::mem::take(&mut self.beside) {
            self.line = Line::Absent;
        }
        self.after = now + self.pause;
        self.pause = (self.pause * 2).min(REDIAL_MAX);
    }

    /// The WebSocket is gone.
    pub(crate) fn lost(&mut self) {
        self.line = Line::Absent;
        self.beside = false;
    }

    /// Whether one that is there by now is still wanted.
    pub(crate) fn is_wanted(&self) -> bool {
        self.line == Line::Dialling || self.beside
    }

    /// Dial another one, to replace the one that there is if that does not speak up meanwhile.
    pub(crate) fn dial_beside(&mut self, now: Instant, acts: &mut Vec<Action>) {
        if self.line == Line::Up && !self.beside && now >= self.after {
            self.beside = true;
            acts.push(Action::Dial);
        }
    }

    /// The one that there is has spoken up.
    pub(crate) fn keep(&mut self) {
        self.beside = false;
    }

    pub(crate) fn dial(&mut self) -> Action {
        self.line = Line::Dialling;
        Action::Dial
    }

    pub(crate) fn dial_if_due(&mut self, now: Instant, acts: &mut Vec<Action>) {
        if self.line == Line::Absent && now >= self.after {
            acts.push(self.dial());
        }
    }
}

/// Pause after the first failed dial, doubled up to the second figure: an edge that is restarted must
/// be found within a second of its return, and a connection that finds none ends after 15 s.
const REDIAL: Duration = Duration::from_millis(125);

const REDIAL_MAX: Duration = Duration::from_millis(500);
