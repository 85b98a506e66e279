//! Counts of the conversations of a session, with open-ended ones apart: event streams, and connections after an
//! upgrade.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use ::http::HeaderMap;

use crate::http::is_event_stream;

/// The shared counts of a session's conversations.
#[derive(Debug, Clone, Default)]
pub struct Conversations(Arc<Mutex<Counts>>);

/// Numbers of conversations by kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Conversations that are expected to end by themselves.
    pub finite: usize,
    /// Event streams.
    pub event_streams: usize,
    /// Connections after an upgrade, usually WebSockets.
    pub upgraded: usize,
}

/// The kind of a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConversationKind {
    /// A request and a response that ends by itself.
    Finite,
    /// A response that lasts for as long as the visitor reads it (`text/event-stream`).
    EventStream,
    /// Raw bytes in both directions after an upgrade.
    Upgraded,
}

impl ConversationKind {
    /// Determine the kind from the fields of a response.
    pub fn of(fields: &HeaderMap) -> Self {
        match is_event_stream(fields) {
            true => Self::EventStream,
            false => Self::Finite,
        }
    }
}

impl Conversations {
    /// Count one more conversation until the returned guard is dropped.
    pub fn start(&self) -> ConversationGuard {
        *self.counts().of(ConversationKind::Finite) += 1;
        ConversationGuard {
            all: self.clone(),
            kind: ConversationKind::Finite,
        }
    }

    /// Return the current counts.
    pub fn now(&self) -> Counts {
        *self.counts()
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counts {
    /// Report whether there are conversations, and all of them are open-ended.
    pub fn are_open_ended(&self) -> bool {
        self.finite == 0 && self.event_streams + self.upgraded > 0
    }

    /// Describe the open-ended conversations: `1 event stream and 2 WebSockets`.
    pub fn describe_open_ended(&self) -> String {
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

    fn of(&mut self, kind: ConversationKind) -> &mut usize {
        match kind {
            ConversationKind::Finite => &mut self.finite,
            ConversationKind::EventStream => &mut self.event_streams,
            ConversationKind::Upgraded => &mut self.upgraded,
        }
    }
}

/// A counted conversation.
#[derive(Debug)]
pub struct ConversationGuard {
    all: Conversations,
    kind: ConversationKind,
}

impl ConversationGuard {
    /// Change the kind, which becomes known with the response.
    pub fn set_kind(&mut self, kind: ConversationKind) {
        if kind != self.kind {
            let mut counts = self.all.counts();
            *counts.of(self.kind) -= 1;
            *counts.of(kind) += 1;
            self.kind = kind;
        }
    }
}

impl Drop for ConversationGuard {
    fn drop(&mut self) {
        *self.all.counts().of(self.kind) -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_open_ended_conversations_may_be_cut() {
        let all = Conversations::default();
        let mut one = all.start();
        let mut two = all.start();
        assert!(!all.now().are_open_ended());

        one.set_kind(ConversationKind::EventStream);
        assert!(!all.now().are_open_ended(), "the other one is finite");
        two.set_kind(ConversationKind::Upgraded);

        assert!(all.now().are_open_ended());
        assert_eq!(
            all.now().describe_open_ended(),
            "1 event stream and 1 WebSocket"
        );
        drop((one, two));
        assert_eq!(all.now(), Counts::default());
    }
}
