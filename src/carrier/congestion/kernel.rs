//! Whose business congestion is while packets ride on a TCP connection.
//!
//! What is lost there, TCP repeats, and all that came behind it waits meanwhile: for the model of a path that
//! is a queue, which it drains by sending less. Where the kernel's own congestion control keeps queues short
//! and does not take every loss for one, a second one on top of it costs half of what gets through. What the
//! socket has no room for, the carrier's queue says.
//!
//! On a slow path it is the other way round: the buffers on the way to the kernel, which on a fast one hold
//! what is sent in a few milliseconds, hold half a second of it, and every small request waits behind that.
//! There the model keeps the window, and with it what is in those buffers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Who sees to it that the network is not overloaded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum CongestionOwner {
    /// The model of the path, by QUIC's window.
    #[default]
    Ours,
    /// The kernel at this end of a TCP connection, all the way to the other end of the session.
    Kernel,
}

/// Who controls congestion on the path that a connection uses now. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct SharedCongestionOwner(Arc<AtomicBool>);

impl SharedCongestionOwner {
    /// Say who does from now on.
    pub fn set(&self, control: CongestionOwner) {
        self.0.store(control == CongestionOwner::Kernel, Relaxed);
    }

    pub(crate) fn is_kernel(&self) -> bool {
        self.0.load(Relaxed)
    }
}

/// How long, in round trips and at least, nothing may be acknowledged before no more is sent that the kernel has
/// room for. TCP's repetitions take less, most often; a connection that is dead takes all there is.
pub(crate) const UNHEARD: (u32, Duration) = (4, Duration::from_millis(300));

/// Bytes per second that a path delivers at least for the kernel alone to be in control: what is under way to
/// it, some 50 KiB, then takes a tenth of a second at most.
pub(crate) const FAST: f64 = 500e3;

/// The same before it is, so that control does not go back and forth.
pub(crate) const SURELY_FAST: f64 = 1.25 * FAST;

/// The window where congestion is the kernel's business: more than QUIC lets a session have on its way.
pub(crate) const OPEN: u64 = 1 << 30;
