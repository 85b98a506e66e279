//! Where an upstream's host is: its addresses, and which of them answered last.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use tokio::net::lookup_host;
use tokio::time::{Instant, timeout};
use tracing::warn;

use crate::carrier::alternate_families;

/// Looks one host up, as often as a connection is made: its addresses may change.
pub struct Resolver {
    host: String,
    port: u16,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The question that is under way. There is one at a time: each takes a thread, which waits for the system's
    /// resolver however long that takes.
    lookup: Option<Lookup>,
    /// What the last answer was.
    known: Vec<SocketAddr>,
    /// The address that answered last, and when.
    winner: Option<(IpAddr, Instant)>,
}

type Lookup = Shared<BoxFuture<'static, Result<Vec<SocketAddr>, Arc<io::Error>>>>;

impl Resolver {
    /// Prepare to look up that host. Nothing is asked yet.
    pub fn new(host: &str, port: u16) -> Self {
        Self {
            host: host.to_owned(),
            port,
            state: Mutex::default(),
        }
    }

    /// List the addresses to try, the one that answered last in front and the families alternating. Those of the
    /// last time are good enough if the system's resolver fails or takes long.
    ///
    /// # Errors
    /// If the host has no address, or has never had one that is known.
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
        if let Some((winner, _)) = self
            .state()
            .winner
            .filter(|(_, at)| at.elapsed() < REMEMBERED)
        {
            // Stable: the others stay in the order of the resolver (RFC 6724).
            found.sort_by_key(|addr| addr.ip() != winner);
        }
        Ok(alternate_families(found))
    }

    /// Note which address has answered. It keeps its age as long as it is the same: now and then the resolver's
    /// order shall have another chance.
    pub fn answered(&self, addr: SocketAddr) {
        let winner = &mut self.state().winner;
        let same = winner.is_some_and(|(ip, at)| ip == addr.ip() && at.elapsed() < REMEMBERED);
        if !same {
            *winner = Some((addr.ip(), Instant::now()));
        }
    }

    async fn look_up(&self) -> io::Result<Vec<SocketAddr>> {
        let (lookup, known) = {
            let mut state = self.state();
            let lookup = state
                .lookup
                .get_or_insert_with(|| ask(&self.host, self.port));
            (lookup.clone(), state.known.clone())
        };
        let answer = match known.is_empty() {
            true => Some(lookup.clone().await),
            false => timeout(PATIENCE, lookup.clone()).await.ok(),
        };
        if answer.is_some() {
            self.forget(&lookup);
        }
        match answer {
            Some(Ok(found)) if !found.is_empty() => {
                self.state().known = found.clone();
                Ok(found)
            }
            _ if !known.is_empty() => {
                warn!(
                    host = self.host,
                    "cannot resolve the upstream's host: using the addresses that it had"
                );
                Ok(known)
            }
            Some(Err(err)) => Err(io::Error::new(err.kind(), err.to_string())),
            _ => Err(io::Error::new(io::ErrorKind::NotFound, "it has no address")),
        }
    }

    /// Ask anew the next time.
    fn forget(&self, lookup: &Lookup) {
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

fn ask(host: &str, port: u16) -> Lookup {
    let host = host.to_owned();
    let asked = async move {
        let found = lookup_host((host.as_str(), port)).await;
        found.map(Iterator::collect).map_err(Arc::new)
    };
    asked.boxed().shared()
}

/// How long the resolver may take while there are addresses of an earlier time: a cached answer takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long an address that answered is tried first (RFC 8305 §4 has history on this order).
const REMEMBERED: Duration = Duration::from_secs(600);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_address_that_answered_is_tried_first_for_a_while() {
        let resolver = Resolver::new("localhost", 80);
        let v6 = SocketAddr::from((Ipv6Addr::LOCALHOST, 80));

        resolver.answered(v6);
        assert_eq!(resolver.addresses().await.unwrap()[0], v6);
        tokio::time::advance(REMEMBERED).await;

        assert!(resolver.addresses().await.unwrap()[0].is_ipv4());
    }

    #[tokio::test(start_paused = true)]
    async fn addresses_of_the_last_time_are_used_while_the_resolver_hangs() {
        let resolver = Resolver::new("app.invalid", 80);
        let known = SocketAddr::from(([192, 0, 2, 1], 80));
        let hanging = futures_util::future::pending::<Result<_, Arc<io::Error>>>();
        resolver.state().lookup = Some(hanging.boxed().shared());
        resolver.state().known = vec![known];

        assert_eq!(resolver.addresses().await.unwrap(), [known]);
        assert!(
            resolver.state().lookup.is_some(),
            "nobody asks a second time"
        );
    }
}
