//! What the operator is told of requests that were refused or failed: the first of a kind at once, the others as a
//! number once a minute, so that nobody who sends many of them fills the log.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::sleep;
use tracing::info;

use crate::edge::fault::Fault;
use crate::proto::escape;

/// Counts failures by host and code.
#[derive(Debug, Clone, Default)]
pub struct Failures(Arc<Mutex<Counts>>);

type Counts = HashMap<(String, &'static str), Count>;

#[derive(Debug, Clone, Copy)]
struct Count {
    status: u16,
    /// Beyond the first, which has been told.
    more: u64,
}

impl Failures {
    /// Note a failure at a host. Hosts that are none of ours are one: anybody can make them up.
    pub fn note(&self, host: Option<&str>, fault: Fault) {
        let mut counts = self.counts();
        let (host, code, status) = (
            host.unwrap_or(STRANGE),
            fault.code(),
            fault.status().as_u16(),
        );
        let is_full = counts.len() >= KINDS && !counts.contains_key(&(host.to_owned(), code));
        let host = if is_full { OTHERS } else { host };
        let key = (host.to_owned(), code);
        if let Some(count) = counts.get_mut(&key) {
            count.more += 1;
            return;
        }
        counts.insert(key, Count { status, more: 0 });
        drop(counts);
        let host = escape(host);
        info!(%host, status, code, "request failed");
    }

    /// Tell once a minute how many more there were. Never returns.
    pub async fn report(self) {
        loop {
            sleep(EVERY).await;
            let counts = std::mem::take(&mut *self.counts());
            for ((host, code), Count { status, more }) in counts {
                if more > 0 {
                    let host = escape(&host);
                    info!(%host, status, code, count = more, "more requests failed within a minute");
                }
            }
        }
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How often numbers are told.
const EVERY: Duration = Duration::from_secs(60);

/// Pairs of host and code that are told apart within a minute.
const KINDS: usize = 64;

/// All hosts that are none of ours, and requests of which no host is known.
const STRANGE: &str = "-";

/// What is beyond [`KINDS`].
const OTHERS: &str = "(others)";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn however_many_names_fail_the_table_stays_small() {
        let failures = Failures::default();

        for number in 0..10 * KINDS {
            let host = format!("{number}.example.com");
            failures.note(Some(&host), Fault::NoSuchTunnel);
            failures.note(None, Fault::NoSuchTunnel);
        }

        let counts = failures.counts();
        assert!(counts.len() <= KINDS + 1, "{}", counts.len());
        let all: u64 = counts.values().map(|count| 1 + count.more).sum();
        assert_eq!(all, 20 * KINDS as u64);
    }
}
