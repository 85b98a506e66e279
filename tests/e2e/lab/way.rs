//! What lies between agents and the edge: loopback, or the bad link of `scripts/over-link`, which says
//! so in the environment. Visitors and upstreams are on loopback either way.

use std::env;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use super::PATIENCE;

/// Where agents find what listens on a port of 127.0.0.1: its address, or the link's far end.
pub fn from_agents(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(far_end().unwrap_or(addr.ip()), addr.port())
}

/// The name under which agents find this machine, for certificates: what edges of `*.localhost` have
/// holds for both.
pub fn host() -> &'static str {
    match far_end() {
        Some(_) => "edge.localhost",
        None => "localhost",
    }
}

/// How long a test waits for something that should happen, before it fails: longer over a link that many
/// tests share.
pub fn patience() -> Duration {
    patient(PATIENCE)
}

/// A limit of a test's own, with the same indulgence.
pub fn patient(limit: Duration) -> Duration {
    limit * setting("QTUNNEL_TEST_PATIENCE").unwrap_or(1)
}

/// The size of a large body. Over the link it is smaller, and still more than all buffers on the way
/// hold.
pub fn large(bytes: u64) -> u64 {
    let smaller = bytes / setting("QTUNNEL_TEST_SMALLER").unwrap_or(1);
    smaller.max(MORE_THAN_BUFFERS.min(bytes))
}

/// A stream's window (4 MiB) at each end, and the socket buffers of two TCP connections, which Linux lets
/// grow to some 6 MiB at the receiver and 4 MiB at the sender.
const MORE_THAN_BUFFERS: u64 = 32 << 20;

fn far_end() -> Option<IpAddr> {
    setting("QTUNNEL_TEST_EDGE_IP")
}

fn setting<T: FromStr>(name: &str) -> Option<T> {
    let value = env::var(name).ok()?;
    let parsed = value.parse();
    Some(parsed.unwrap_or_else(|_| panic!("{name}={value} is not of its kind")))
}
