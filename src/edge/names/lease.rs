//! An agent's hold on a name, which outlives its session.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::info;

use super::registry::{LiveTunnel, Owner};
use crate::auth::Name;
use crate::proto::{ClaimMode, Close};

/// Who holds a name, and whether its agent is here.
pub struct Lease {
    pub owner: Owner,
    /// The session that serves the name. Who waits for the agent to come back watches it.
    pub presence: watch::Sender<Option<Arc<LiveTunnel>>>,
    /// Since when no session does, in a manner of speaking; `None` while one does.
    pub absence: Option<(Absence, Instant)>,
    /// When two agents that are both alive wanted the name last.
    contested: Option<Instant>,
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
    pub fn live(tunnel: Arc<LiveTunnel>) -> Self {
        Self {
            owner: tunnel.owner,
            presence: watch::Sender::new(Some(tunnel)),
            absence: None,
            contested: None,
        }
    }

    /// Begin with an agent that is expected to come back before a moment.
    pub fn away(owner: Owner, until: Instant) -> Self {
        Self {
            owner,
            presence: watch::Sender::new(None),
            absence: Some((Absence::Lost, until)),
            contested: None,
        }
    }

    /// Let a session have the name, and close the one that had it, if another has. Report whether the
    /// file of leases does not say so yet.
    pub fn pass_to(&mut self, name: &Name, tunnel: Arc<LiveTunnel>) -> bool {
        let is_new = self.owner != tunnel.owner || self.has_left() || self.is_over();
        let former = std::mem::replace(&mut self.owner, tunnel.owner);
        self.absence = None;
        let held = self.presence.send_replace(Some(tunnel.clone()));
        let Some(held) = held.filter(|held| !held.is_of_session(&tunnel)) else {
            return is_new;
        };
        let was_alive = held.connection.close_reason().is_none();
        if former == tunnel.owner {
            if held.run != tunnel.run && was_alive {
                info!(%name, agent = %former.agent, "a newer process of the agent has the name");
            }
            let code = Close::Superseded.code();
            held.connection.close(code, b"superseded");
        } else {
            if was_alive {
                self.contest();
            }
            let agent = tunnel.owner.agent;
            let reason = format!("agent {agent} has taken the name {name} over");
            held.connection
                .close(Close::TakenOver.code(), reason.as_bytes());
        }
        is_new
    }

    /// Note that two want the name who are both alive: from now on, and for a while, it passes on only
    /// from a session that is silent.
    pub fn contest(&mut self) {
        self.contested = Some(Instant::now());
    }

    fn is_contested(&self) -> bool {
        self.contested
            .is_some_and(|since| since.elapsed() < CONTESTED)
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

    /// Decide whether a session may have the name.
    pub fn decide(&self, tunnel: &LiveTunnel, mode: ClaimMode, grace: Duration) -> Decision {
        let held = self.presence.borrow().clone();
        let alive = held.filter(|held| held.connection.close_reason().is_none());
        if self.owner == tunnel.owner {
            return self.decide_for_its_agent(tunnel, mode, alive);
        }
        if self.has_left() {
            return Decision::Granted;
        }
        let may_take_over = self.owner.shares_token(tunnel.owner);
        match (mode, alive) {
            (ClaimMode::TakeOver, Some(held)) if may_take_over && self.is_contested() => {
                Decision::IfSilent(held)
            }
            (ClaimMode::TakeOver, _) if may_take_over => Decision::Granted,
            _ => Decision::Refused {
                holder: self.holder(grace),
                may_take_over,
            },
        }
    }

    fn decide_for_its_agent(
        &self,
        tunnel: &LiveTunnel,
        mode: ClaimMode,
        alive: Option<Arc<LiveTunnel>>,
    ) -> Decision {
        let Some(held) = alive.filter(|held| !held.is_of_session(tunnel)) else {
            return Decision::Granted;
        };
        if mode == ClaimMode::Superseded || (held.run != tunnel.run && self.is_contested()) {
            return Decision::IfSilent(held);
        }
        // Runs have no order but that in which they come; within one, a session may be late.
        match held.run == tunnel.run && held.epoch > tunnel.epoch {
            true => Decision::Refused {
                holder: format!("a newer session of the same agent ({})", self.owner.agent),
                may_take_over: false,
            },
            false => Decision::Granted,
        }
    }

    /// Say who holds the name and until when.
    fn holder(&self, grace: Duration) -> String {
        let agent = self.owner.agent;
        match self.absence {
            Some((_, until)) => format!(
                "agent {agent}, which is away and has until {} to come back",
                clock(until)
            ),
            None => format!(
                "agent {agent} for as long as it is connected and {} beyond",
                humantime::format_duration(grace)
            ),
        }
    }
}

/// Whether a session may have a name.
pub enum Decision {
    Granted,
    /// If the session that has it shows no sign of life.
    IfSilent(Arc<LiveTunnel>),
    Refused {
        /// Who holds the name and until when.
        holder: String,
        /// Whether it would have been granted to somebody who asks to take it over.
        may_take_over: bool,
    },
}

/// How long two may not take a name from each other, counted from their last attempt: longer than
/// service managers wait before they start a program again.
const CONTESTED: Duration = Duration::from_secs(60);

/// Write a moment as people read it: `14:05:31 UTC, in 42 s`.
fn clock(moment: Instant) -> String {
    let left = moment.saturating_duration_since(Instant::now());
    let seconds = left.as_secs() + u64::from(left.subsec_nanos() > 0);
    let until = Timestamp::now() + SignedDuration::from_secs(seconds as i64);
    format!("{}, in {seconds} s", until.strftime("%H:%M:%S UTC"))
}
