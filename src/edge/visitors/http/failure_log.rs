//! Log of requests that were refused or failed: the first of a kind at once, the others as a count
//! once a minute, so that nobody who sends many of them can fill the log.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::sleep;
use tracing::info;

use crate::edge::fault::Fault;
use crate::proto::escape;

/// Log of failed requests, which counts them by host and code.
#[derive(Debug, Clone, Default)]
pub struct FailureLog(Arc<Mutex<Counts>>);

type Counts = HashMap<(String, &'static str), Count>;

#[derive(Debug, Clone, Copy)]
struct Count {
    status: u16,
    /// Failures beyond the first, which has been logged.
    more: u64,
}

impl FailureLog {
    /// Record a failure at a host. Hosts that are not ours count as one (`None`): anybody can make
    /// them up.
    pub fn note(&self, host: Option<&str>, fault: Fault) {
        let mut counts = self.counts();
        let (host, code, status) = (
            host.unwrap_or(UNKNOWN_HOST),
            fault.code(),
            fault.status().as_u16(),
        );
        let is_full = counts.len() >= MAX_KINDS && !counts.contains_key(&(host.to_owned(), code));
        let host = if is_full { OTHER_HOSTS } else { host };
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

    /// Log the counts once a minute. Never returns.
    pub async fn report(self) {
        loop {
            sleep(REPORT_INTERVAL).await;
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

/// Interval at which counts are logged.
const REPORT_INTERVAL: Duration = Duration::from_secs(60);

/// Pairs of host and code that are counted separately within a minute.
const MAX_KINDS: usize = 64;

/// Stands for hosts that are not ours, and for requests whose host is unknown.
const UNKNOWN_HOST: &str = "-";

/// Stands for all hosts beyond [`MAX_KINDS`].
const OTHER_HOSTS: &str = "(others)";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_stays_small_however_many_names_fail() {
        let log = FailureLog::default();

        for number in 0..10 * MAX_KINDS {
            let host = format!("{number}.example.com");
            log.note(Some(&host), Fault::NoSuchTunnel);
            log.note(None, Fault::NoSuchTunnel);
        }

        let counts = log.counts();
        assert!(counts.len() <= MAX_KINDS + 1, "{}", counts.len());
        let all: u64 = counts.values().map(|count| 1 + count.more).sum();
        assert_eq!(all, 20 * MAX_KINDS as u64);
    }
}
