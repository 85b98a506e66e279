//! State of the WebSocket, and the backoff of dialling it.

use std::time::Duration;

use tokio::time::Instant;

use super::Action;

/// State of the WebSocket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WebSocketState {
    Absent,
    Dialling,
    Up,
}

/// State of the WebSocket and the backoff of dialling it.
#[derive(Debug)]
pub(crate) struct WebSocketDialer {
    pub(crate) state: WebSocketState,
    /// Set while a replacement is being dialled beside the WebSocket in use.
    replacing: bool,
    not_before: Instant,
    backoff: Duration,
}

impl WebSocketDialer {
    pub(crate) fn new(state: WebSocketState, now: Instant) -> Self {
        Self {
            state,
            replacing: false,
            not_before: now,
            backoff: REDIAL_BACKOFF,
        }
    }

    /// Record that the dialled WebSocket is up.
    pub(crate) fn succeeded(&mut self) {
        self.state = WebSocketState::Up;
        self.replacing = false;
        self.backoff = REDIAL_BACKOFF;
    }

    /// Record that dialling has failed, and double the backoff.
    pub(crate) fn failed(&mut self, now: Instant) {
        if !std::mem::take(&mut self.replacing) {
            self.state = WebSocketState::Absent;
        }
        self.not_before = now + self.backoff;
        self.backoff = (self.backoff * 2).min(MAX_REDIAL_BACKOFF);
    }

    /// Record that the WebSocket is gone.
    pub(crate) fn lost(&mut self) {
        self.state = WebSocketState::Absent;
        self.replacing = false;
    }

    /// Report whether a WebSocket that has just come up is still wanted.
    pub(crate) fn is_wanted(&self) -> bool {
        self.state == WebSocketState::Dialling || self.replacing
    }

    /// Dial a replacement for the WebSocket in use, unless that one receives something meanwhile.
    pub(crate) fn dial_replacement(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if self.state == WebSocketState::Up && !self.replacing && now >= self.not_before {
            self.replacing = true;
            actions.push(Action::Dial);
        }
    }

    /// Record that the WebSocket in use has received something: no replacement is needed.
    pub(crate) fn cancel_replacement(&mut self) {
        self.replacing = false;
    }

    /// Dial now.
    pub(crate) fn dial(&mut self) -> Action {
        self.state = WebSocketState::Dialling;
        Action::Dial
    }

    /// Dial if there is no WebSocket and the backoff has passed.
    pub(crate) fn dial_if_due(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if self.state == WebSocketState::Absent && now >= self.not_before {
            actions.push(self.dial());
        }
    }
}

/// Backoff after the first failed dial, doubled up to [`MAX_REDIAL_BACKOFF`]: a restarted edge must
/// be found within a second of its return, and a connection that finds none ends after 15 s.
const REDIAL_BACKOFF: Duration = Duration::from_millis(125);

/// Upper limit of the backoff.
const MAX_REDIAL_BACKOFF: Duration = Duration::from_millis(500);
