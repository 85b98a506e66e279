//! The lease file: the names that are reserved, which a restarted edge must restore.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, Notify, watch};
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tracing::warn;

use super::tunnel::Owner;
use crate::auth::{Name, TokenId};
use crate::proto::AgentId;
use crate::state::{StateDir, StateError};

/// The lease file. It is replaced as a whole, so that a crash at any moment leaves a complete one,
/// and many changes are written at once.
pub struct LeaseFile {
    state: StateDir,
    /// Counts changes.
    version: AtomicU64,
    /// The last change that the file contains.
    flushed: watch::Sender<u64>,
    wake: Notify,
    /// Set once the file belongs to a successor. Locked while the file is being written.
    retired: Mutex<bool>,
}

impl LeaseFile {
    /// Open the file, and return the leases that an earlier edge left in it.
    ///
    /// # Errors
    /// [`StateError`] if the file cannot be read. A damaged file is reported and ignored.
    pub fn open(state: StateDir) -> Result<(Self, Vec<(Name, Owner)>), StateError> {
        let restored = match state.read(FILE)?.map(|bytes| decode(&bytes)) {
            None => Vec::new(),
            Some(Some(restored)) => restored,
            Some(None) => {
                warn!("the file {FILE} is damaged, name reservations of earlier agents are lost");
                Vec::new()
            }
        };
        let lease_file = Self {
            state,
            version: AtomicU64::new(0),
            flushed: watch::Sender::new(0),
            wake: Notify::new(),
            retired: Mutex::new(false),
        };
        Ok((lease_file, restored))
    }

    /// Record a change that the file does not contain yet, and wake the writer.
    pub fn changed(&self) {
        self.version.fetch_add(1, Ordering::Relaxed);
        self.wake.notify_one();
    }

    /// Wake the writer, so that it looks at the leases again.
    pub fn wake(&self) {
        self.wake.notify_one();
    }

    /// Wait until the writer is woken.
    pub async fn woken(&self) {
        self.wake.notified().await;
    }

    /// Write the file unless it is up to date. Failures are only logged: the edge works without the
    /// file.
    pub async fn save(&self, snapshot: impl FnOnce() -> Vec<(Name, Owner)>) {
        let retired = self.retired.lock().await;
        let version = self.version.load(Ordering::Relaxed);
        if *self.flushed.borrow() == version {
            return;
        }
        if *retired {
            self.flushed.send_replace(version);
            return;
        }
        let (state, text) = (self.state.clone(), encode(snapshot()));
        let written = spawn_blocking(move || state.write(FILE, &text)).await;
        match written {
            Ok(Ok(())) => {}
            Ok(Err(err)) => warn!(
                err = &err as &dyn std::error::Error,
                "cannot write name reservations"
            ),
            Err(err) => warn!(%err, "cannot write name reservations"),
        }
        self.flushed.send_replace(version);
    }

    /// Stop writing the file because a successor does (`true`), or resume (`false`).
    #[cfg(unix)]
    pub async fn retire(&self, retired: bool) {
        *self.retired.lock().await = retired;
    }

    /// Wait until all changes so far are written, for at most [`WRITE_TIMEOUT`].
    pub async fn flushed(&self) {
        let version = self.version.load(Ordering::Relaxed);
        let mut flushed = self.flushed.subscribe();
        let written = flushed.wait_for(|flushed| *flushed >= version);
        if timeout(WRITE_TIMEOUT, written).await.is_err() {
            warn!(
                "the state directory is slow, name reservations may be lost if the edge crashes now"
            );
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

/// Encode the leases as JSON, sorted by name.
pub(crate) fn encode(mut leases: Vec<(Name, Owner)>) -> Vec<u8> {
    leases.sort_by(|(one, _), (other, _)| one.cmp(other));
    let entry = |(name, owner): (Name, Owner)| Entry {
        name: name.to_string(),
        token: owner.token.to_hex(),
        agent: owner.agent.to_hex(),
    };
    let leases = leases.into_iter().map(entry).collect();
    serde_json::to_vec_pretty(&Contents { leases }).expect("strings can be written")
}

/// Decode the leases; `None` if the file is damaged.
pub(crate) fn decode(bytes: &[u8]) -> Option<Vec<(Name, Owner)>> {
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

/// A slower disk must not keep agents from connecting.
const WRITE_TIMEOUT: Duration = Duration::from_secs(2);

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
    async fn saved_leases_are_restored() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let leases = vec![
            ("blog".parse().unwrap(), owner(1)),
            ("shop".parse().unwrap(), owner(2)),
        ];

        let (lease_file, before) = LeaseFile::open(state.clone()).unwrap();
        lease_file.changed();
        lease_file.save(|| leases.clone()).await;
        lease_file.flushed().await;

        assert!(before.is_empty());
        assert_eq!(LeaseFile::open(state).unwrap().1, leases);
    }

    #[test]
    fn a_damaged_file_is_ignored() {
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
