//! Noticing that the network is another one, or that time has passed unseen.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    time::{Duration, SystemTime},
};

use futures_util::StreamExt;
use if_watch::tokio::IfWatcher;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};
use tracing::debug;

/// Between two looks at the routes and clocks: routes change without an address changing, and
/// not every system tells.
const LOOK: Duration = Duration::from_secs(1);

/// Between looks right after an address has changed: its routes come a moment later.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// How long to look that often.
const SETTLING: Duration = Duration::from_secs(2);

/// How much later than asked for a timer may fire before the machine must have slept. A machine
/// so busy that it takes longer gains from starting again, too.
const SLEPT: Duration = Duration::from_secs(3);

/// What has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
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
pub(super) async fn watch(hops: Vec<SocketAddr>, changes: mpsc::Sender<Change>) {
    let mut interfaces = IfWatcher::new()
        .inspect_err(|err| debug!(%err, "address changes are noticed late"))
        .ok();
    let mut sources: Vec<_> = hops.iter().map(|hop| source(*hop)).collect();
    let mut clocks = Clocks::now();
    let mut settled = Instant::now();
    loop {
        let pause = if Instant::now() < settled {
            LOOK_AGAIN
        } else {
            LOOK
        };
        let due = Instant::now() + pause;
        tokio::select! {
            event = next(&mut interfaces) => match event {
                Some(_) => settled = Instant::now() + SETTLING,
                None => interfaces = None,
            },
            () = sleep_until(due) => {}
            () = changes.closed() => return,
        }
        let slept = clocks.slept(pause);
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

async fn next(interfaces: &mut Option<IfWatcher>) -> Option<()> {
    match interfaces {
        Some(interfaces) => interfaces.next().await?.ok().map(|_| ()),
        None => std::future::pending().await,
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
