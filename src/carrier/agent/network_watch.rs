//! Detection of network changes, and of suspension of the machine.

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

/// A change that a connection should react to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NetworkChange {
    /// Packets to the edge are sent from another local address, or can be sent again.
    Address { now: IpAddr },
    /// The machine or this process was suspended for this long.
    Woke { after: Duration },
}

impl fmt::Display for NetworkChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address { now } => write!(f, "local address is now {now}"),
            Self::Woke { after } => write!(f, "woke after {:.0} s", after.as_secs_f32()),
        }
    }
}

/// Report changes of the local address towards any of `remotes`, and suspensions, until the receiver is dropped.
pub(crate) async fn watch(remotes: Vec<SocketAddr>, changes: mpsc::Sender<NetworkChange>) {
    let mut notifications = Notifications::open()
        .inspect_err(|err| debug!(%err, "network changes are detected only by polling"))
        .ok();
    let mut sources: Vec<_> = remotes.iter().map(|remote| source(*remote)).collect();
    let mut clocks = Clocks::now();
    loop {
        tokio::select! {
            notification = next(&mut notifications) => if notification.is_err() {
                notifications = None;
            },
            () = sleep(POLL_INTERVAL) => {}
            () = changes.closed() => return,
        }
        let slept = clocks.slept(POLL_INTERVAL);
        let mut change = slept.map(|after| NetworkChange::Woke { after });
        for (remote, before) in remotes.iter().zip(&mut sources) {
            let now = source(*remote);
            if let Some(address) = now.filter(|_| now != *before) {
                change = Some(NetworkChange::Address { now: address });
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

async fn next(notifications: &mut Option<Notifications>) -> io::Result<()> {
    match notifications {
        Some(notifications) => notifications.next().await,
        None => pending().await,
    }
}

/// The kernel's notifications of changed addresses and routes (rtnetlink).
#[cfg(target_os = "linux")]
struct Notifications(netlink_sys::TokioSocket);

#[cfg(target_os = "linux")]
impl Notifications {
    fn open() -> io::Result<Self> {
        use netlink_sys::{AsyncSocket, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE};

        /// `RTMGRP_IPV4_IFADDR`, `RTMGRP_IPV4_ROUTE`, `RTMGRP_IPV6_IFADDR`, `RTMGRP_IPV6_ROUTE`
        /// (rtnetlink(7)).
        const GROUPS: u32 = 0x10 | 0x40 | 0x100 | 0x400;

        let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
        socket.socket_mut().bind(&SocketAddr::new(0, GROUPS))?;
        Ok(Self(socket))
    }

    /// Wait for a notification. Its content does not matter: it only triggers a check.
    async fn next(&mut self) -> io::Result<()> {
        use netlink_sys::AsyncSocketExt;

        // A truncated notification does no harm.
        let mut notification = bytes::BytesMut::with_capacity(512);
        match self.0.recv(&mut notification).await {
            Ok(_) => Ok(()),
            // There were so many changes that some notifications were dropped.
            Err(err) if err.raw_os_error() == Some(ENOBUFS) => Ok(()),
            Err(err) => Err(err),
        }
    }
}

#[cfg(target_os = "linux")]
const ENOBUFS: i32 = 105;

/// A placeholder for other systems, where only polling detects changes.
#[cfg(not(target_os = "linux"))]
struct Notifications;

#[cfg(not(target_os = "linux"))]
impl Notifications {
    fn open() -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    async fn next(&mut self) -> io::Result<()> {
        pending().await
    }
}

/// Return the local address that packets to `remote` would be sent from. Sends nothing.
fn source(remote: SocketAddr) -> Option<IpAddr> {
    let any: IpAddr = match remote {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(remote).ok()?;
    socket.local_addr().ok().map(|addr| addr.ip())
}

/// The last readings of two clocks, one of which goes on while the machine is suspended.
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

    /// Return the time since the last call if it is much longer than the `asked` timeout, which means that the
    /// machine was suspended.
    fn slept(&mut self, asked: Duration) -> Option<Duration> {
        let before = std::mem::replace(self, Self::now());
        let monotonic = self.monotonic - before.monotonic;
        let wall = self.wall.duration_since(before.wall).unwrap_or_default();
        let passed = monotonic.max(wall);
        (passed > asked + SLEEP_THRESHOLD).then_some(passed)
    }
}

/// The interval between two checks of routes and clocks, if no notification comes first.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// The delay of a timer beyond which the machine must have been suspended. A machine so busy that a
/// timer takes longer benefits from starting over, too.
const SLEEP_THRESHOLD: Duration = Duration::from_secs(3);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_suspension_is_detected_on_either_clock() {
        let mut clocks = Clocks::now();
        assert_eq!(clocks.slept(POLL_INTERVAL), None);

        clocks.wall -= Duration::from_secs(60);
        assert!(
            clocks
                .slept(POLL_INTERVAL)
                .is_some_and(|slept| slept >= Duration::from_secs(60))
        );

        clocks.monotonic -= Duration::from_secs(60);
        assert!(
            clocks
                .slept(POLL_INTERVAL)
                .is_some_and(|slept| slept >= Duration::from_secs(60))
        );

        assert_eq!(clocks.slept(POLL_INTERVAL), None);
    }

    #[test]
    fn packets_to_loopback_leave_from_loopback() {
        let remote = ([127, 0, 0, 1], 443).into();

        assert_eq!(source(remote), Some(Ipv4Addr::LOCALHOST.into()));
    }
}
