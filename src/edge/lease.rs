//! An agent's hold on a name, which outlives its session.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::sync::watch;
use tokio::time::Instant;

use super::registry::{Owner, Tunnel};
use crate::proto::Close;

/// Who holds a name, and whether its agent is here.
pub struct Lease {
    pub owner: Owner,
    /// The session that serves the name. Who waits for the agent to come back watches it.
    pub presence: watch::Sender<Option<Arc<Tunnel>>>,
    /// Since when no session does, in a manner of speaking; `None` while one does.
    pub absence: Option<(Absence, Instant)>,
}

/// Why no session serves a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Absence {
    /// The session broke: the name is kept for its agent.
    Lost,
    /// The agent said goodbye. It may be restarting, so requests wait for it; but whoever asks for
    /// the name gets it.
    Left,
}

impl Lease {
    /// Begin with a session.
    pub fn live(tunnel: Arc<Tunnel>) -> Self {
        Self {
            owner: tunnel.owner,
            presence: watch::Sender::new(Some(tunnel)),
            absence: None,
        }
    }

    /// Begin with an agent that is expected to come back before a moment.
    pub fn away(owner: Owner, until: Instant) -> Self {
        Self {
            owner,
            presence: watch::Sender::new(None),
            absence: Some((Absence::Lost, until)),
        }
    }

    /// Let a session have the name, and close the one that had it. Report whether the file of leases
    /// does not say so yet.
    pub fn pass_to(&mut self, tunnel: Arc<Tunnel>) -> bool {
        let is_new = self.owner != tunnel.owner || self.has_left() || self.is_over();
        self.owner = tunnel.owner;
        self.absence = None;
        let ghost = self.presence.send_replace(Some(tunnel.clone()));
        if let Some(ghost) = ghost.filter(|ghost| !ghost.is_of_session(&tunnel)) {
            let code = Close::Superseded.code();
            ghost.connection.close(code, b"superseded");
        }
        is_new
    }

    /// Note that the session is gone; the lease ends at `until`.
    pub fn leave(&mut self, absence: Absence, until: Instant) {
        self.absence = Some((absence, until));
        self.presence.send_replace(None);
    }

    /// Return when the lease ends, if the agent is away.
    pub fn until(&self) -> Option<Instant> {
        self.absence.map(|(_, until)| until)
    }

    /// Report whether the agent stayed away for too long.
    pub fn is_over(&self) -> bool {
        self.until().is_some_and(|until| until <= Instant::now())
    }

    /// Report whether the agent said goodbye.
    pub fn has_left(&self) -> bool {
        matches!(self.absence, Some((Absence::Left, _)))
    }

    /// Report whether a session may have the name: that of the same agent always, unless it is older
    /// than the one that has it; others once the agent has left, and those with the same token also
    /// while it is only away (a container starts with a new identity each time). The error says who
    /// holds the name and until when.
    pub fn yields_to(&self, tunnel: &Tunnel, grace: Duration) -> Result<(), String> {
        let agent = self.owner.agent;
        if self.owner == tunnel.owner {
            return match &*self.presence.borrow() {
                Some(held) if held.epoch > tunnel.epoch => {
                    Err(format!("a newer session of the same agent ({agent})"))
                }
                _ => Ok(()),
            };
        }
        let same_token = self.owner.shares_token(tunnel.owner);
        let presence = self.presence.borrow();
        let closed = |held: &Tunnel| held.connection.close_reason().is_some();
        match self.absence {
            Some((Absence::Left, _)) => Ok(()),
            Some((Absence::Lost, _)) if same_token => Ok(()),
            None if same_token && presence.as_deref().is_some_and(closed) => Ok(()),
            Some((Absence::Lost, until)) => Err(format!(
                "agent {agent}, which is away and has until {} to come back",
                clock(until)
            )),
            None => Err(format!(
                "agent {agent} for as long as it is connected and {} beyond",
                humantime::format_duration(grace)
            )),
        }
    }
}

/// Write a moment as people read it: `14:05:31 UTC, in 42 s`.
fn clock(moment: Instant) -> String {
    let left = moment.saturating_duration_since(Instant::now());
    let seconds = left.as_secs() + u64::from(left.subsec_nanos() > 0);
    let until = Timestamp::now() + SignedDuration::from_secs(seconds as i64);
    format!("{}, in {seconds} s", until.strftime("%H:%M:%S UTC"))
}
