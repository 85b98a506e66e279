//! Conversations that have no end of their own: event streams, and what follows an upgrade.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use ::http::HeaderMap;

use crate::http::is_event_stream;

/// How many conversations of a session there are, by whether they can be expected to end.
#[derive(Debug, Clone, Default)]
pub struct Conversations(Arc<Mutex<Counts>>);

/// Numbers of conversations.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Requests that will be answered, and answers that will end.
    pub finite: usize,
    /// Event streams.
    pub event_streams: usize,
    /// What follows an upgrade, WebSockets most likely.
    pub upgraded: usize,
}

/// What a conversation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A request and an answer.
    Finite,
    /// An answer that goes on for as long as somebody reads it.
    EventStream,
    /// Raw bytes both ways.
    Upgraded,
}

impl Kind {
    /// Tell from an answer's head what it is.
    pub fn of(fields: &HeaderMap) -> Self {
        match is_event_stream(fields) {
            true => Self::EventStream,
            false => Self::Finite,
        }
    }
}

impl Conversations {
    /// Count one more, until the returned value is dropped.
    pub fn begin(&self) -> OpenEndedGuard {
        *self.counts().of(Kind::Finite) += 1;
        OpenEndedGuard {
            all: self.clone(),
            kind: Kind::Finite,
        }
    }

    /// Return how many there are.
    pub fn now(&self) -> Counts {
        *self.counts()
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counts {
    /// Report whether none is left that can be expected to end.
    pub fn are_open_ended(&self) -> bool {
        self.finite == 0 && self.event_streams + self.upgraded > 0
    }

    /// Name those without an end: `1 event stream and 2 WebSockets`.
    pub fn open_ended(&self) -> String {
        let several = |count: usize, name: &str| match count {
            0 => None,
            1 => Some(format!("1 {name}")),
            count => Some(format!("{count} {name}s")),
        };
        let parts = [
            several(self.event_streams, "event stream"),
            several(self.upgraded, "WebSocket"),
        ];
        parts
            .into_iter()
            .flatten()
            .collect::<Vec<_>>()
            .join(" and ")
    }

    fn of(&mut self, kind: Kind) -> &mut usize {
        match kind {
            Kind::Finite => &mut self.finite,
            Kind::EventStream => &mut self.event_streams,
            Kind::Upgraded => &mut self.upgraded,
        }
    }
}

/// One that is counted.
#[derive(Debug)]
pub struct OpenEndedGuard {
    all: Conversations,
    kind: Kind,
}

impl OpenEndedGuard {
    /// Note what it turns out to be.
    pub fn is(&mut self, kind: Kind) {
        if kind != self.kind {
            let mut counts = self.all.counts();
            *counts.of(self.kind) -= 1;
            *counts.of(kind) += 1;
            self.kind = kind;
        }
    }
}

impl Drop for OpenEndedGuard {
    fn drop(&mut self) {
        *self.all.counts().of(self.kind) -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_has_no_end_may_be_cut() {
        let all = Conversations::default();
        let mut one = all.begin();
        let mut two = all.begin();
        assert!(!all.now().are_open_ended());

        one.is(Kind::EventStream);
        assert!(!all.now().are_open_ended(), "the other one will end");
        two.is(Kind::Upgraded);

        assert!(all.now().are_open_ended());
        assert_eq!(all.now().open_ended(), "1 event stream and 1 WebSocket");
        drop((one, two));
        assert_eq!(all.now(), Counts::default());
    }
}
