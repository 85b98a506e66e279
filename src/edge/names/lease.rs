//! A lease: an agent's reservation of a name, which outlives its session.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::info;

use super::tunnel::{LiveTunnel, Owner};
use crate::auth::Name;
use crate::proto::{ClaimMode, Close};

/// An agent's reservation of a name, and the session that serves it, if one does.
pub struct Lease {
    pub owner: Owner,
    /// The session that serves the name, or `None`. Requests that wait for the agent to reconnect
    /// watch it.
    pub presence: watch::Sender<Option<Arc<LiveTunnel>>>,
    /// Reason why no session serves the name, and the end of its reservation; `None` while one
    /// serves it.
    pub away: Option<Away>,
    /// Last time at which two live agents competed for the name.
    contested: Option<Instant>,
}

/// The state of a lease that no session serves.
#[derive(Debug, Clone, Copy)]
pub struct Away {
    /// Reason why no session serves the name.
    pub reason: AwayReason,
    /// Time at which the name becomes free.
    pub expires: Instant,
}

/// Reason why no session serves a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AwayReason {
    /// The session was lost: the name is reserved for its agent.
    Lost,
    /// The agent closed the session. It may be restarting, so requests wait for it; but any other
    /// agent that asks for the name gets it.
    Left,
}

impl Lease {
    /// Create the lease of a name that a session serves.
    pub fn live(tunnel: Arc<LiveTunnel>) -> Self {
        Self {
            owner: tunnel.owner,
            presence: watch::Sender::new(Some(tunnel)),
            away: None,
            contested: None,
        }
    }

    /// Create the lease of a name whose agent is expected to reconnect before `expires`.
    pub fn reserved(owner: Owner, expires: Instant) -> Self {
        Self {
            owner,
            presence: watch::Sender::new(None),
            away: Some(Away {
                reason: AwayReason::Lost,
                expires,
            }),
            contested: None,
        }
    }

    /// Transfer the name to a session, and close the session that had it, if it is another. Report
    /// whether the lease file needs to be written for this.
    pub fn transfer_to(&mut self, name: &Name, tunnel: Arc<LiveTunnel>) -> bool {
        let is_new = self.owner != tunnel.owner || self.has_left() || self.has_expired();
        let former = std::mem::replace(&mut self.owner, tunnel.owner);
        self.away = None;
        let held = self.presence.send_replace(Some(tunnel.clone()));
        let Some(held) = held.filter(|held| !held.is_of_session(&tunnel)) else {
            return is_new;
        };
        let was_alive = held.connection.close_reason().is_none();
        if former == tunnel.owner {
            if held.run != tunnel.run && was_alive {
                info!(%name, agent = %former.agent, "a newer process of the agent took over the name");
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

    /// Record that two live agents compete for the name: from now on, for [`CONTEST_PERIOD`], it
    /// passes only from a session that is silent.
    pub fn contest(&mut self) {
        self.contested = Some(Instant::now());
    }

    fn is_contested(&self) -> bool {
        self.contested
            .is_some_and(|since| since.elapsed() < CONTEST_PERIOD)
    }

    /// Record that no session serves the name any more; the lease expires at `expires`.
    pub fn set_away(&mut self, reason: AwayReason, expires: Instant) {
        self.away = Some(Away { reason, expires });
        self.presence.send_replace(None);
    }

    /// Return when the lease expires, if the agent is away.
    pub fn expires(&self) -> Option<Instant> {
        self.away.map(|away| away.expires)
    }

    /// Report whether the agent has stayed away for too long.
    pub fn has_expired(&self) -> bool {
        self.expires()
            .is_some_and(|expires| expires <= Instant::now())
    }

    /// Report whether the agent closed its session.
    pub fn has_left(&self) -> bool {
        self.away
            .is_some_and(|away| away.reason == AwayReason::Left)
    }

    /// Decide whether a session may have the name.
    pub fn decide(&self, tunnel: &LiveTunnel, mode: ClaimMode, grace: Duration) -> Decision {
        let held = self.presence.borrow().clone();
        let alive = held.filter(|held| held.connection.close_reason().is_none());
        if self.owner == tunnel.owner {
            return self.decide_for_own_agent(tunnel, mode, alive);
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
                holder: self.describe_holder(grace),
                may_take_over,
            },
        }
    }

    /// Decide about a session of the agent that holds the name.
    fn decide_for_own_agent(
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
        // Runs are ordered only by their arrival; within one run, an older session may arrive late.
        match held.run == tunnel.run && held.epoch > tunnel.epoch {
            true => Decision::Refused {
                holder: format!("a newer session of the same agent ({})", self.owner.agent),
                may_take_over: false,
            },
            false => Decision::Granted,
        }
    }

    /// Describe who holds the name, and until when.
    fn describe_holder(&self, grace: Duration) -> String {
        let agent = self.owner.agent;
        match self.away {
            Some(away) => format!(
                "agent {agent}, which is away and has until {} to come back",
                format_moment(away.expires)
            ),
            None => format!(
                "agent {agent} for as long as it is connected and {} beyond",
                humantime::format_duration(grace)
            ),
        }
    }
}

/// Decision about a session that claims a name.
pub enum Decision {
    Granted,
    /// Granted if the session that has the name shows no sign of life.
    IfSilent(Arc<LiveTunnel>),
    Refused {
        /// Description of who holds the name, and until when.
        holder: String,
        /// Set if a claim that asks to take the name over would have been granted.
        may_take_over: bool,
    },
}

/// Time for which two agents may not take a name from each other, counted from their last attempt:
/// longer than service managers wait before they restart a program.
const CONTEST_PERIOD: Duration = Duration::from_secs(60);

/// Format a moment for people: `14:05:31 UTC, in 42 s`.
fn format_moment(moment: Instant) -> String {
    let left = moment.saturating_duration_since(Instant::now());
    let seconds = left.as_secs() + u64::from(left.subsec_nanos() > 0);
    let until = Timestamp::now() + SignedDuration::from_secs(seconds as i64);
    format!("{}, in {seconds} s", until.strftime("%H:%M:%S UTC"))
}
