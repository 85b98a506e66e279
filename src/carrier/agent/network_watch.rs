//! Noticing that the network is another one, or that time has passed unseen.

use std::{
    fmt,
    future::pending,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    time::{Duration, SystemTime},
};

use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};
use tracing::debug;

/// What has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// Packets to the edge leave from another address, or leave again.
    Address { now: IpAddr },
    /// The machine or this process was stopped for so long.
    Woke { after: Duration },
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address { now } => write!(f, "local address is now {now}"),
            Self::Woke { after } => write!(f, "woke after {:.0} s", after.as_secs_f32()),
        }
    }
}

/// Report changes on the way to any of `hops` until nobody listens.
pub(crate) async fn watch(hops: Vec<SocketAddr>, changes: mpsc::Sender<Change>) {
    let mut notices = Notices::open()
        .inspect_err(|err| debug!(%err, "changes of the network are noticed late"))
        .ok();
    let mut sources: Vec<_> = hops.iter().map(|hop| source(*hop)).collect();
    let mut clocks = Clocks::now();
    loop {
        tokio::select! {
            notice = next(&mut notices) => if notice.is_err() {
                notices = None;
            },
            () = sleep(LOOK) => {}
            () = changes.closed() => return,
        }
        let slept = clocks.slept(LOOK);
        let mut change = slept.map(|after| Change::Woke { after });
        for (hop, before) in hops.iter().zip(&mut sources) {
            let now = source(*hop);
            if let Some(address) = now.filter(|_| now != *before) {
                change = Some(Change::Address { now: address });
            }
            *before = now;
        }
        if let Some(change) = change
            && changes.send(change).await.is_err()
        {
            return;
        }
    }
}

async fn next(notices: &mut Option<Notices>) -> io::Result<()> {
    match notices {
        Some(notices) => notices.next().await,
        None => pending().await,
    }
}

/// The kernel's notices of changed addresses and routes.
#[cfg(target_os = "linux")]
struct Notices(netlink_sys::TokioSocket);

#[cfg(target_os = "linux")]
impl Notices {
    fn open() -> io::Result<Self> {
        use netlink_sys::{AsyncSocket, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE};

        /// `RTMGRP_IPV4_IFADDR`, `RTMGRP_IPV4_ROUTE`, `RTMGRP_IPV6_IFADDR`, `RTMGRP_IPV6_ROUTE`
        /// (rtnetlink(7)).
        const GROUPS: u32 = 0x10 | 0x40 | 0x100 | 0x400;

        let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
        socket.socket_mut().bind(&SocketAddr::new(0, GROUPS))?;
        Ok(Self(socket))
    }

    /// Wait for a notice. What it says does not matter: it is a reason to look.
    async fn next(&mut self) -> io::Result<()> {
        use netlink_sys::AsyncSocketExt;

        // Truncating a notice does no harm.
        let mut notice = bytes::BytesMut::with_capacity(512);
        match self.0.recv(&mut notice).await {
            Ok(_) => Ok(()),
            // So many changes that some notices were dropped.
            Err(err) if err.raw_os_error() == Some(ENOBUFS) => Ok(()),
            Err(err) => Err(err),
        }
    }
}

#[cfg(target_os = "linux")]
const ENOBUFS: i32 = 105;

/// Elsewhere there are none, and the clock is what makes us look.
#[cfg(not(target_os = "linux"))]
struct Notices;

#[cfg(not(target_os = "linux"))]
impl Notices {
    fn open() -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    async fn next(&mut self) -> io::Result<()> {
        pending().await
    }
}

/// The local address that packets to `hop` would leave from. Sends nothing.
fn source(hop: SocketAddr) -> Option<IpAddr> {
    let any: IpAddr = match hop {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(hop).ok()?;
    socket.local_addr().ok().map(|addr| addr.ip())
}

/// Two clocks: one of them goes on while the machine sleeps.
struct Clocks {
    monotonic: Instant,
    wall: SystemTime,
}

impl Clocks {
    fn now() -> Self {
        Self {
            monotonic: Instant::now(),
            wall: SystemTime::now(),
        }
    }

    /// How long has passed unseen since the last call, if at most `asked` should have.
    fn slept(&mut self, asked: Duration) -> Option<Duration> {
        let before = std::mem::replace(self, Self::now());
        let monotonic = self.monotonic - before.monotonic;
        let wall = self.wall.duration_since(before.wall).unwrap_or_default();
        let passed = monotonic.max(wall);
        (passed > asked + SLEPT).then_some(passed)
    }
}

/// Between two looks at the routes and clocks, on systems that do not tell of changes.
const LOOK: Duration = Duration::from_secs(1);

/// How much later than asked for a timer may fire before the machine must have slept. A machine
/// so busy that it takes longer gains from starting again, too.
const SLEPT: Duration = Duration::from_secs(3);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_longer_than_asked_for_is_noticed_on_either_clock() {
        let mut clocks = Clocks::now();
        assert_eq!(clocks.slept(LOOK), None);

        clocks.wall -= Duration::from_secs(60);
        assert!(
            clocks
                .slept(LOOK)
                .is_some_and(|slept| slept >= Duration::from_secs(60))
        );

        clocks.monotonic -= Duration::from_secs(60);
        assert!(
            clocks
                .slept(LOOK)
                .is_some_and(|slept| slept >= Duration::from_secs(60))
        );

        assert_eq!(clocks.slept(LOOK), None);
    }

    #[test]
    fn packets_to_loopback_leave_from_loopback() {
        let hop = ([127, 0, 0, 1], 443).into();

        assert_eq!(source(hop), Some(Ipv4Addr::LOCALHOST.into()));
    }
}
