//! Happy Eyeballs (RFC 8305): TCP connections to hosts that have several addresses.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

/// Choose up to four of a host's addresses, with the address families alternating and that of the first in
/// front.
pub fn alternate(found: impl IntoIterator<Item = SocketAddr>) -> Vec<SocketAddr> {
    let found: Vec<_> = found.into_iter().collect();
    let first_is_ipv6 = found.first().is_some_and(SocketAddr::is_ipv6);
    let (first, second): (Vec<_>, Vec<_>) = found
        .into_iter()
        .partition(|addr| addr.is_ipv6() == first_is_ipv6);
    let longest = first.len().max(second.len());
    let turns = (0..longest).flat_map(|i| [first.get(i), second.get(i)]);
    let mut addresses = Vec::new();
    for addr in turns.flatten() {
        if !addresses.contains(addr) && addresses.len() < MAX_ADDRESSES {
            addresses.push(*addr);
        }
    }
    addresses
}

/// Connect to the first address that answers. Each attempt starts when the one before it has failed, or has taken
/// [`CONNECTION_ATTEMPT_DELAY`]. `limit` applies to each attempt.
///
/// # Errors
/// Returns the error of every address if none answers within the limit.
pub async fn connect(
    addresses: &[SocketAddr],
    limit: Duration,
) -> Result<(TcpStream, SocketAddr), Vec<(SocketAddr, io::Error)>> {
    let mut waiting = addresses.iter().copied();
    let mut attempts = FuturesUnordered::new();
    let mut failures = Vec::new();
    loop {
        match waiting.next() {
            Some(addr) => attempts.push(attempt(addr, limit)),
            None if attempts.is_empty() => return Err(failures),
            None => {}
        }
        let mut delay = pin!(sleep(CONNECTION_ATTEMPT_DELAY));
        tokio::select! {
            biased;
            Some(outcome) = attempts.next() => match outcome {
                (addr, Ok(tcp)) => return Ok((tcp, addr)),
                (addr, Err(err)) => failures.push((addr, err)),
            },
            () = &mut delay, if waiting.len() > 0 => {}
        }
    }
}

async fn attempt(addr: SocketAddr, limit: Duration) -> (SocketAddr, io::Result<TcpStream>) {
    let connected = timeout(limit, TcpStream::connect(addr)).await;
    let timed_out = || Err(io::ErrorKind::TimedOut.into());
    (addr, connected.unwrap_or_else(|_| timed_out()))
}

/// The Connection Attempt Delay (RFC 8305 §5): the time before the next address is tried, too.
pub const CONNECTION_ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// The most addresses of one host that are tried: two of each family.
const MAX_ADDRESSES: usize = 4;

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn families_alternate_and_the_first_stays_in_front() {
        let found = [
            "1.1.1.1:1",
            "1.1.1.2:1",
            "1.1.1.3:1",
            "[1::1]:1",
            "[1::2]:1",
            "1.1.1.1:1",
        ];
        let found = found.map(|addr| addr.parse().unwrap());

        let chosen: Vec<_> = alternate(found).iter().map(ToString::to_string).collect();

        assert_eq!(chosen, ["1.1.1.1:1", "[1::1]:1", "1.1.1.2:1", "[1::2]:1"]);
    }

    #[tokio::test]
    async fn a_refused_connection_starts_the_next_attempt_at_once() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let nobody = SocketAddr::from((Ipv6Addr::LOCALHOST, addr.port()));

        let started = std::time::Instant::now();
        let (_, connected) = connect(&[nobody, addr], CONNECTION_ATTEMPT_DELAY * 10)
            .await
            .unwrap();

        assert_eq!(connected, addr);
        assert!(started.elapsed() < CONNECTION_ATTEMPT_DELAY);
    }

    #[tokio::test]
    async fn all_failures_are_returned() {
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = free.local_addr().unwrap();
        drop(free);

        let failures = connect(&[addr, addr], CONNECTION_ATTEMPT_DELAY)
            .await
            .unwrap_err();

        assert_eq!(failures.len(), 2);
        assert!(
            connect(&[], CONNECTION_ATTEMPT_DELAY)
                .await
                .unwrap_err()
                .is_empty()
        );
    }
}
