//! Which names are held, in a file: what a restarted edge must find again.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, Notify, watch};
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tracing::warn;

use super::registry::Owner;
use crate::auth::{Name, TokenId};
use crate::proto::AgentId;
use crate::state::{StateDir, StateError};

/// The file of leases. It is replaced as a whole, so that a crash at any moment leaves a whole one,
/// and many changes are written at once.
pub struct LeaseFile {
    state: StateDir,
    /// Counts changes.
    version: AtomicU64,
    /// Up to which change the file has them all.
    saved: watch::Sender<u64>,
    wanted: Notify,
    /// Whether the file belongs to a successor. Held while the file is being written.
    retired: Mutex<bool>,
}

impl LeaseFile {
    /// Open the file, and return what an earlier edge left in it.
    ///
    /// # Errors
    /// [`StateError`] if the file cannot be read. A damaged one is reported and passed over.
    pub fn open(state: StateDir) -> Result<(Self, Vec<(Name, Owner)>), StateError> {
        let kept = match state.read(FILE)?.map(|bytes| parse(&bytes)) {
            None => Vec::new(),
            Some(Some(kept)) => kept,
            Some(None) => {
                warn!("the file {FILE} is damaged: names are not kept for the agents of before");
                Vec::new()
            }
        };
        let lease_file = Self {
            state,
            version: AtomicU64::new(0),
            saved: watch::Sender::new(0),
            wanted: Notify::new(),
            retired: Mutex::new(false),
        };
        Ok((lease_file, kept))
    }

    /// Note that the file does not have the latest change.
    pub fn changed(&self) {
        self.version.fetch_add(1, Ordering::Relaxed);
        self.wanted.notify_one();
    }

    /// Have whoever keeps the file look at the leases again.
    pub fn wake(&self) {
        self.wanted.notify_one();
    }

    /// Wait until there is something to do.
    pub async fn wanted(&self) {
        self.wanted.notified().await;
    }

    /// Write the file, unless it is up to date. Failures are reported: the edge works without it.
    pub async fn save(&self, snapshot: impl FnOnce() -> Vec<(Name, Owner)>) {
        let retired = self.retired.lock().await;
        let version = self.version.load(Ordering::Relaxed);
        if *self.saved.borrow() == version {
            return;
        }
        if *retired {
            self.saved.send_replace(version);
            return;
        }
        let (state, text) = (self.state.clone(), print(snapshot()));
        let written = spawn_blocking(move || state.write(FILE, &text)).await;
        match written {
            Ok(Ok(())) => {}
            Ok(Err(err)) => warn!(err = &err as &dyn std::error::Error, "names are not kept"),
            Err(err) => warn!(%err, "names are not kept"),
        }
        self.saved.send_replace(version);
    }

    /// Write the file no more, because a successor does, or again.
    #[cfg(unix)]
    pub async fn retire(&self, retired: bool) {
        *self.retired.lock().await = retired;
    }

    /// Wait until the changes up to now are written, for as long as a disk may take.
    pub async fn saved(&self) {
        let version = self.version.load(Ordering::Relaxed);
        let mut saved = self.saved.subscribe();
        let written = saved.wait_for(|saved| *saved >= version);
        if timeout(SLOW_DISK, written).await.is_err() {
            warn!("the state directory is slow: names may not be kept if the edge crashes now");
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Contents {
    leases: Vec<Entry>,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    name: String,
    token: String,
    agent: String,
}

pub(crate) fn print(mut held: Vec<(Name, Owner)>) -> Vec<u8> {
    held.sort_by(|(one, _), (other, _)| one.cmp(other));
    let entry = |(name, owner): (Name, Owner)| Entry {
        name: name.to_string(),
        token: owner.token.to_hex(),
        agent: owner.agent.to_hex(),
    };
    let leases = held.into_iter().map(entry).collect();
    serde_json::to_vec_pretty(&Contents { leases }).expect("strings can be written")
}

pub(crate) fn parse(bytes: &[u8]) -> Option<Vec<(Name, Owner)>> {
    let contents: Contents = serde_json::from_slice(bytes).ok()?;
    let lease = |entry: Entry| {
        let owner = Owner {
            token: TokenId::from_hex(&entry.token)?,
            agent: AgentId::from_hex(&entry.agent)?,
        };
        Some((entry.name.parse().ok()?, owner))
    };
    contents.leases.into_iter().map(lease).collect()
}

const FILE: &str = "leases.json";

/// A disk that takes longer must not keep agents away.
const SLOW_DISK: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(byte: u8) -> Owner {
        Owner {
            token: TokenId::from_hex(&format!("{byte:016x}")).unwrap(),
            agent: AgentId([byte; 16]),
        }
    }

    #[tokio::test]
    async fn what_is_saved_is_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let held = vec![
            ("blog".parse().unwrap(), owner(1)),
            ("shop".parse().unwrap(), owner(2)),
        ];

        let (lease_file, before) = LeaseFile::open(state.clone()).unwrap();
        lease_file.changed();
        lease_file.save(|| held.clone()).await;
        lease_file.saved().await;

        assert!(before.is_empty());
        assert_eq!(LeaseFile::open(state).unwrap().1, held);
    }

    #[test]
    fn a_damaged_file_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        for damaged in [
            "",
            "{",
            "[]",
            r#"{"leases":[{"name":"a","token":"x","agent":"y"}]}"#,
        ] {
            state.write(FILE, damaged.as_bytes()).unwrap();

            assert!(
                LeaseFile::open(state.clone()).unwrap().1.is_empty(),
                "{damaged}"
            );
        }
    }
}
