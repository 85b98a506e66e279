//! Resolution of an upstream's host, with a preference for the address that accepted a connection last.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use tokio::net::lookup_host;
use tokio::time::{Instant, timeout};
use tracing::warn;

use crate::net::happy_eyeballs;

/// The resolver of one host. It looks the host up for every new connection, because the addresses may change.
pub struct Resolver {
    host: String,
    port: u16,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The lookup in progress. There is only one at a time: each occupies a thread, which waits for the system's
    /// resolver without a limit.
    lookup: Option<Lookup>,
    /// The addresses that the last successful lookup returned.
    last_found: Vec<SocketAddr>,
    /// The address that accepted a connection, and since when it is preferred.
    preferred: Option<(IpAddr, Instant)>,
}

type Lookup = Shared<BoxFuture<'static, Result<Vec<SocketAddr>, Arc<io::Error>>>>;

impl Resolver {
    /// Create a resolver. No lookup is started yet.
    pub fn new(host: &str, port: u16) -> Self {
        Self {
            host: host.to_owned(),
            port,
            state: Mutex::default(),
        }
    }

    /// Return the addresses to try: the preferred one first, then the families alternating. If the system's resolver
    /// fails or takes longer than [`LOOKUP_TIMEOUT`], the addresses of the last lookup are returned.
    ///
    /// # Errors
    /// [`io::Error`] if the lookup fails or finds no address, and no earlier one has succeeded.
    pub async fn addresses(&self) -> io::Result<Vec<SocketAddr>> {
        let mut found = match self.host.parse::<IpAddr>() {
            Ok(ip) => return Ok(vec![SocketAddr::new(ip, self.port)]),
            // Development servers listen on one or the other, and resolvers disagree.
            Err(_) if self.host.eq_ignore_ascii_case("localhost") => {
                let both = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
                both.map(|ip: IpAddr| SocketAddr::new(ip, self.port)).into()
            }
            Err(_) => self.look_up().await?,
        };
        if let Some((preferred, _)) = self
            .state()
            .preferred
            .filter(|(_, at)| at.elapsed() < PREFERENCE_LIFETIME)
        {
            // A stable sort: the others stay in the order of the resolver (RFC 6724).
            found.sort_by_key(|addr| addr.ip() != preferred);
        }
        Ok(happy_eyeballs::alternate(found))
    }

    /// Record that an address has accepted a connection. Its preference is not renewed while it lasts, so that the
    /// resolver's order is tried again from time to time.
    pub fn connected(&self, addr: SocketAddr) {
        let preferred = &mut self.state().preferred;
        let same =
            preferred.is_some_and(|(ip, at)| ip == addr.ip() && at.elapsed() < PREFERENCE_LIFETIME);
        if !same {
            *preferred = Some((addr.ip(), Instant::now()));
        }
    }

    /// Look the host up, or join the lookup in progress.
    async fn look_up(&self) -> io::Result<Vec<SocketAddr>> {
        let (lookup, last_found) = {
            let mut state = self.state();
            let lookup = state
                .lookup
                .get_or_insert_with(|| start_lookup(&self.host, self.port));
            (lookup.clone(), state.last_found.clone())
        };
        let result = match last_found.is_empty() {
            true => Some(lookup.clone().await),
            false => timeout(LOOKUP_TIMEOUT, lookup.clone()).await.ok(),
        };
        if result.is_some() {
            self.clear_lookup(&lookup);
        }
        match result {
            Some(Ok(found)) if !found.is_empty() => {
                self.state().last_found = found.clone();
                Ok(found)
            }
            _ if !last_found.is_empty() => {
                warn!(
                    host = self.host,
                    "cannot resolve the upstream's host, using its previous addresses"
                );
                Ok(last_found)
            }
            Some(Err(err)) => Err(io::Error::new(err.kind(), err.to_string())),
            _ => Err(io::Error::new(io::ErrorKind::NotFound, "it has no address")),
        }
    }

    /// Drop a finished lookup, so that the next call starts another one.
    fn clear_lookup(&self, lookup: &Lookup) {
        let mut state = self.state();
        if state
            .lookup
            .as_ref()
            .is_some_and(|other| other.ptr_eq(lookup))
        {
            state.lookup = None;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Start a lookup that several callers can wait for.
fn start_lookup(host: &str, port: u16) -> Lookup {
    let host = host.to_owned();
    let lookup = async move {
        let found = lookup_host((host.as_str(), port)).await;
        found.map(Iterator::collect).map_err(Arc::new)
    };
    lookup.boxed().shared()
}

/// Time that a lookup has while there are previous addresses to use: a cached answer takes milliseconds.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(1);

/// Time for which an address that accepted a connection is tried first (RFC 8305 §4 allows history in the order).
const PREFERENCE_LIFETIME: Duration = Duration::from_secs(600);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_address_that_connected_last_is_tried_first_for_a_while() {
        let resolver = Resolver::new("localhost", 80);
        let v6 = SocketAddr::from((Ipv6Addr::LOCALHOST, 80));

        resolver.connected(v6);
        assert_eq!(resolver.addresses().await.unwrap()[0], v6);
        tokio::time::advance(PREFERENCE_LIFETIME).await;

        assert!(resolver.addresses().await.unwrap()[0].is_ipv4());
    }

    #[tokio::test(start_paused = true)]
    async fn previous_addresses_are_used_while_the_resolver_hangs() {
        let resolver = Resolver::new("app.invalid", 80);
        let previous = SocketAddr::from(([192, 0, 2, 1], 80));
        let hanging = futures_util::future::pending::<Result<_, Arc<io::Error>>>();
        resolver.state().lookup = Some(hanging.boxed().shared());
        resolver.state().last_found = vec![previous];

        assert_eq!(resolver.addresses().await.unwrap(), [previous]);
        assert!(
            resolver.state().lookup.is_some(),
            "no second lookup is started"
        );
    }
}
