//! Flow control of conversations: how much of a body may be sent before the receiver has read it.
//!
//! QUIC's own windows are fixed, and the same for every stream of a connection: large enough for
//! one download on a long path, they let a thousand slow readers pin a thousand times as much
//! memory, and then fill the connection's window, which stalls all other streams. So each direction
//! of a conversation has a window of its own on top. It starts small, grows while its reader keeps
//! up (as TCP's receive buffer does), and no further than the [`Budget`]s of the session and of the
//! process allow. Short bodies never need an update: the first is sent only once much has been
//! read.

pub(crate) mod budget;
pub(crate) mod large_head;
pub(crate) mod receive_window;
pub(crate) mod send_window;
pub(crate) mod tail;
#[cfg(test)]
mod tests;
pub(crate) mod unread;

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quinn::Connection;
use tokio::sync::{Notify, watch};
use tracing::warn;

pub use self::budget::{Budget, BufferTotal};
pub use self::large_head::{LargeHead, LargeHeadsFull};
pub use self::receive_window::{ReceiveWindow, WindowExceeded};
pub use self::send_window::SendWindow;
pub use self::unread::{SharedWindow, Unread};

use self::large_head::LargeHeads;
use self::tail::TailProbe;

use crate::proto::{Close, FIRST_WINDOW_LIMIT, WINDOW_STEP, Window, WireError};

/// Callback that closes the session with a code and a reason.
type CloseSession = dyn Fn(Close, &str) + Send + Sync;

/// Flow-control windows of one session's conversations, in both directions.
pub struct FlowControl {
    /// Current RTT of the session.
    round_trip: Box<dyn Fn() -> Duration + Send + Sync>,
    /// Report of whether the path loses packets.
    is_lossy: Box<dyn Fn() -> bool + Send + Sync>,
    budget: Budget,
    /// Limits of the streams we send on, for those that have come near theirs.
    sending: Mutex<HashMap<u64, watch::Sender<u64>>>,
    /// Window updates that the peer may still send: one per step of what was sent.
    updates_allowed: AtomicI64,
    /// Streams on which the peer has violated the protocol.
    violations: AtomicU32,
    /// Closes the session.
    close: Box<CloseSession>,
    /// Window updates to send to the peer.
    pending_updates: Mutex<HashMap<u64, u64>>,
    update_pending: Notify,
    large_heads: LargeHeads,
    tail: TailProbe,
    /// Called after each message with the length of its body.
    on_message_written: Box<dyn Fn(u64) + Send + Sync>,
}

impl FlowControl {
    /// Create the flow control of a session. `on_message_written` is called whenever the end of a
    /// message is written, with the length of its body.
    pub fn for_connection(
        connection: &Connection,
        budget: Budget,
        on_message_written: impl Fn(u64) + Send + Sync + 'static,
    ) -> Arc<Self> {
        let (path, stats, whole) = (connection.clone(), connection.clone(), connection.clone());
        let close = move |close: Close, reason: &str| whole.close(close.code(), reason.as_bytes());
        let is_lossy = move || {
            let path = stats.stats().path;
            path.lost_packets * LOSSY_RATIO > path.sent_packets
        };
        Self::new(
            move || path.rtt(),
            is_lossy,
            close,
            budget,
            on_message_written,
        )
    }

    pub(crate) fn new(
        round_trip: impl Fn() -> Duration + Send + Sync + 'static,
        is_lossy: impl Fn() -> bool + Send + Sync + 'static,
        close: impl Fn(Close, &str) + Send + Sync + 'static,
        budget: Budget,
        on_message_written: impl Fn(u64) + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self {
            on_message_written: Box::new(on_message_written),
            round_trip: Box::new(round_trip),
            is_lossy: Box::new(is_lossy),
            budget,
            sending: Mutex::default(),
            updates_allowed: AtomicI64::new(SPARE_UPDATES),
            violations: AtomicU32::new(0),
            close: Box::new(close),
            pending_updates: Mutex::default(),
            update_pending: Notify::new(),
            large_heads: LargeHeads::default(),
            tail: TailProbe::default(),
        })
    }

    /// Wait for window updates and return them, to be sent to the peer. Cancel-safe.
    pub async fn window_updates(&self) -> Vec<Window> {
        loop {
            let limits = std::mem::take(&mut *lock(&self.pending_updates));
            if !limits.is_empty() {
                let limits = limits.into_iter();
                return limits
                    .map(|(stream, limit)| Window { stream, limit })
                    .collect();
            }
            self.update_pending.notified().await;
        }
    }

    /// Apply a window update from the peer. One for a stream that has ended is ignored.
    ///
    /// # Errors
    /// If the peer has sent more updates than the bytes sent can have caused.
    pub fn raise(&self, Window { stream, limit }: Window) -> Result<(), WireError> {
        if self.updates_allowed.fetch_sub(1, Ordering::Relaxed) <= 0 {
            return Err(WireError::Invalid(
                "more window updates than the bytes sent allow",
            ));
        }
        if let Some(known) = lock(&self.sending).get(&stream) {
            known.send_if_modified(|known| {
                let raised = limit > *known;
                *known = limit.max(*known);
                raised
            });
        }
        Ok(())
    }

    /// Record that the peer has violated the protocol on a stream, which is reset. At
    /// [`MAX_VIOLATIONS`] the session is closed, so that the log does not fill and no visitor's
    /// time is wasted.
    pub fn report_violation(&self, stream: u64, what: &dyn fmt::Display) {
        let before = self.violations.fetch_add(1, Ordering::Relaxed);
        if before < MAX_VIOLATIONS {
            warn!(stream, %what, "the other end violated the protocol, stream reset");
        }
        if before + 1 == MAX_VIOLATIONS {
            (self.close)(Close::Protocol, "too many streams violated the protocol");
        }
    }

    /// Record that a stream's total has grown from `before` to `now` bytes.
    fn record_sent(&self, before: u64, now: u64) {
        let steps = now / WINDOW_STEP - before / WINDOW_STEP;
        if steps > 0 {
            self.updates_allowed
                .fetch_add(steps as i64, Ordering::Relaxed);
        }
    }

    /// Wait until a tail probe is due, which makes the loss of a message's last packet noticed.
    /// Cancel-safe.
    pub async fn tail_probe_due(&self) {
        self.tail.due(|| self.round_trip()).await;
    }

    fn message_written(&self, bytes: u64) {
        self.tail.message_written(&self.is_lossy);
        (self.on_message_written)(bytes);
    }

    fn queue_update(&self, stream: u64, limit: u64) {
        lock(&self.pending_updates).insert(stream, limit);
        self.update_pending.notify_one();
    }

    fn round_trip(&self) -> Duration {
        (self.round_trip)().max(MIN_ROUND_TRIP)
    }
}

impl fmt::Debug for FlowControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FlowControl").finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that holds the lock can panic halfway.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Window of a new conversation while there is room, in bytes: twice what is in flight at 50 Mbit/s
/// and 40 ms, because on a lossy path the next update may take several round trips.
const FIRST_WINDOW: u64 = FIRST_WINDOW_LIMIT;

/// Largest window, in bytes: an RTT of 300 ms at 100 Mbit/s. QUIC's own is as large.
const MAX_WINDOW: u64 = 4 << 20;

/// No update is sent before this much has been read (a quarter of the smallest window), so that a
/// sender needs no entry in the table of limits until it has sent this much.
const FIRST_UPDATE: u64 = WINDOW_STEP;

/// Window updates tolerated beyond what was sent: none is needed, and it costs nothing.
const SPARE_UPDATES: i64 = 64;

/// Streams of a session that may violate the protocol. One may be a bug at the other end, which is
/// logged; this many are deliberate.
const MAX_VIOLATIONS: u32 = 16;

/// Tail probes are sent if more than one packet in this many is lost.
const LOSSY_RATIO: u64 = 500;

/// Shortest RTT to reckon with, because of scheduling.
const MIN_ROUND_TRIP: Duration = Duration::from_millis(1);
