//! Choice of who controls congestion while packets travel in a TCP connection: QUIC or TCP.
//!
//! TCP retransmits what is lost, and everything behind it waits meanwhile. QUIC's model sees that
//! as a queue, which it drains by sending less. Where the kernel's own congestion control keeps
//! queues short and does not take every loss for congestion, a second controller on top of it
//! halves the throughput. Backpressure then comes from the carrier's send queue.
//!
//! On a slow path it is the other way round: the buffers in front of the kernel, which on a fast
//! path hold a few milliseconds of data, hold half a second of it, and every small request waits
//! behind that. There the model keeps control of the window, and so of what is in those buffers.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use socket2::SockRef;

use crate::net::path_kind::PathKind;
use crate::net::tcp_options;

/// Layer that controls congestion.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum CongestionOwner {
    /// QUIC: the model of the path, through the congestion window.
    #[default]
    Quic,
    /// TCP: the kernel at this end of a connection that reaches to the other end of the session.
    Tcp,
}

impl CongestionOwner {
    /// Determine whether QUIC can leave congestion control to the kernel's TCP on a connection to this
    /// address, which must lead there without a proxy: it can if the connection uses BBR, which keeps the
    /// queues in the network short.
    pub(crate) fn of<'s>(tcp: impl Into<SockRef<'s>>, peer: SocketAddr) -> Self {
        match PathKind::of(peer) == PathKind::Network && tcp_options::is_on_bbr(&tcp.into()) {
            true => Self::Tcp,
            false => Self::Quic,
        }
    }
}

/// Owner of congestion control on the path that a connection uses now. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct SharedCongestionOwner(Arc<AtomicBool>);

impl SharedCongestionOwner {
    /// Set the owner.
    pub fn set(&self, owner: CongestionOwner) {
        self.0.store(owner == CongestionOwner::Tcp, Relaxed);
    }

    /// Report whether TCP controls congestion.
    pub(crate) fn is_tcp(&self) -> bool {
        self.0.load(Relaxed)
    }
}

/// Silence without acknowledgements, in round trips and at least, after which the window shrinks to
/// the initial one although the kernel has room. TCP's retransmissions usually take less; a dead
/// connection would absorb everything.
pub(crate) const ACK_TIMEOUT: (u32, Duration) = (4, Duration::from_millis(300));

/// Delivery rate in bytes per second below which QUIC takes congestion control back from TCP: above
/// it, what is buffered in front of the kernel (some 50 KiB) takes at most a tenth of a second.
pub(crate) const TCP_MIN_RATE: f64 = 500e3;

/// Delivery rate in bytes per second from which TCP gets control. Higher than [`TCP_MIN_RATE`], so
/// that control does not oscillate.
pub(crate) const TCP_ENTRY_RATE: f64 = 1.25 * TCP_MIN_RATE;

/// Window while TCP controls congestion, in bytes: more than QUIC lets a session have in flight.
pub(crate) const OPEN_WINDOW: u64 = 1 << 30;
