//! The agent's two phases: connect, then serve, reconnecting for ever.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tracing::debug;

use super::config::AgentConfig;
use super::event::Event;
use super::forward::loops::Mark;
use super::forward::{Route, ServedTunnel};
use super::session::backoff::Backoff;
use super::session::connect_error::ConnectError;
use super::session::draining::DrainingSessions;
use super::session::open::{Ended, Session, SessionIdentity};
use super::session::seldom::Seldom;
use super::upstream::Upstream;
use super::upstream::pool::Pool;
use super::upstream::read_limit::Crowd;
use crate::carrier::PathMemory;
use crate::proto::{ClaimMode, LOST_LIMIT, LostSession, Refusal, TunnelGrant, escape};
use crate::stream::Quota;
use crate::tls::TrustError;

/// An agent that is connected.
pub struct Agent {
    config: AgentConfig,
    tunnels: Arc<Vec<Arc<ServedTunnel>>>,
    session: Session,
    opener: Opener,
}

impl Agent {
    /// Connect to the edge and open the tunnels. Failures that may pass are reported to the
    /// observer and tried again, for ever; drop the future to give up.
    ///
    /// # Errors
    /// [`AgentError`] if trying again can never help.
    pub async fn connect(config: AgentConfig) -> Result<Self, AgentError> {
        let (mut pools, crowd) = (Vec::new(), Crowd::default());
        let tunnels = Arc::new(
            config
                .tunnels
                .iter()
                .map(|tunnel| {
                    Ok(Arc::new(ServedTunnel {
                        route: route(&tunnel.upstream, &mut pools, &crowd)?,
                        host_header: tunnel.host_header.clone(),
                        upgrades: tunnel.upgrades.clone(),
                        mark: Mark::random(),
                        wide_cookies: Seldom::default(),
                        timeout: config.upstream_timeout,
                        observer: config.observer.clone(),
                    }))
                })
                .collect::<Result<Vec<_>, TrustError>>()?,
        );
        let mut opener = Opener::new(&config);
        let session = opener.open(&config).await?;
        for pool in pools {
            if let Err(err) = pool.probe().await {
                let cause = std::error::Error::source(&err)
                    .map(ToString::to_string)
                    .unwrap_or_default();
                config.observer.tell(Event::UpstreamDown {
                    upstream: pool.target().to_string(),
                    problem: format!("{err}: {cause}"),
                });
            }
        }
        Ok(Self {
            config,
            tunnels,
            session,
            opener,
        })
    }

    /// Return the tunnels that the edge opened, with their public addresses.
    pub fn tunnels(&self) -> &[TunnelGrant] {
        &self.session.welcome.tunnels
    }

    /// Serve until `shutdown`, then drain for as long as the grace period. A lost session is
    /// replaced by a new one.
    ///
    /// # Errors
    /// [`AgentError`] if the edge refuses the agent for good.
    pub async fn serve(self, shutdown: impl Future<Output = ()>) -> Result<(), AgentError> {
        let Self {
            config,
            tunnels,
            mut session,
            mut opener,
        } = self;
        let mut former = DrainingSessions::new(config.clone(), tunnels.clone());
        let mut shutdown = std::pin::pin!(former.stopped_with(shutdown));
        loop {
            let ended = session.serve(&config, &tunnels, &mut shutdown).await;
            let wait = opener.start_again();
            match ended {
                Ended::Shutdown => break,
                Ended::TakenOver(by) => return Err(AgentError::TakenOver { by }),
                Ended::Superseded => {
                    opener.next.claim = ClaimMode::Superseded;
                    let reason = "another process with this agent's identity has taken its names";
                    let reason = reason.into();
                    config.observer.tell(Event::Reconnecting { reason, wait });
                }
                Ended::Moving(session) => {
                    let told = "a newer process of the edge takes over";
                    config.observer.tell(Event::Notice(told.into()));
                    former.adopt(*session);
                }
                Ended::Lost { reason, report } => {
                    opener.remember(report);
                    debug!(reason, "session lost");
                    config.observer.tell(Event::Reconnecting { reason, wait });
                }
            }
            let opened = async {
                sleep(wait).await;
                opener.open(&config).await
            };
            session = tokio::select! {
                opened = opened => opened?,
                () = &mut shutdown => break,
            };
        }
        former.ended().await;
        Ok(())
    }
}

/// Opens one session after the other.
struct Opener {
    backoff: Backoff,
    /// Whether there has been a session.
    was_connected: bool,
    /// How often a session may be followed by another at once.
    at_once: Quota,
    /// What the next session is.
    next: SessionIdentity,
    /// What became of earlier sessions, the latest first.
    lost: Vec<LostSession>,
    /// What they found out about the way to the edge.
    memory: PathMemory,
}

impl Opener {
    fn new(config: &AgentConfig) -> Self {
        let mut backoff = Backoff::default();
        // The first attempt is made at once.
        backoff.next();
        Self {
            backoff,
            was_connected: false,
            at_once: Quota::new(AT_ONCE, AT_ONCE_EVERY),
            next: SessionIdentity::first(match config.take_over_names {
                true => ClaimMode::TakeOver,
                false => ClaimMode::Own,
            }),
            lost: Vec::new(),
            memory: PathMemory::default(),
        }
    }

    /// Begin to count attempts anew, and return when the first one will be made. An edge that ends sessions, or
    /// sends the agent on, as quickly as they are opened is not asked in a tight loop.
    fn start_again(&mut self) -> Duration {
        if self.at_once.take() {
            self.backoff.reset();
        }
        self.backoff.next()
    }

    /// Have the edge told of a session in the next one.
    fn remember(&mut self, report: LostSession) {
        self.lost.insert(0, report);
        self.lost.truncate(LOST_LIMIT);
    }

    async fn open(&mut self, config: &AgentConfig) -> Result<Session, AgentError> {
        let mut told = None;
        loop {
            let identity = self.next;
            self.next.epoch += 1;
            let opening = Session::open(config, identity, &self.lost, &self.memory);
            let err = match with_progress(opening, config).await {
                Ok(session) => {
                    self.was_connected = true;
                    // What was asked for, was asked for once.
                    self.next.claim = ClaimMode::Own;
                    let tunnels = session.welcome.tunnels.clone();
                    config.observer.tell(Event::Ready {
                        tunnels,
                        transport: session.transport_now(),
                    });
                    return Ok(session);
                }
                Err(err) => err,
            };
            let taken = matches!(err, ConnectError::Refused(Refusal::NameTaken { .. }));
            if taken && identity.claim == ClaimMode::Superseded {
                return Err(AgentError::Superseded);
            }
            // Whoever has the names after a long absence may not want them for ever.
            let is_permanent = err.is_permanent() && !(taken && self.was_connected);
            if is_permanent || config.exit_on_failure {
                return Err(err.into());
            }
            if !matches!(err, ConnectError::Unreachable { .. }) {
                // The edge may have begun to send requests before the session broke.
                self.remember(LostSession {
                    epoch: identity.epoch,
                    accepted: 0,
                    unread: Vec::new(),
                });
            }
            if let ConnectError::Unreachable { tried, .. } = &err {
                debug!(%tried, "the edge is not reached");
            }
            let mut wait = self.backoff.next();
            if err.is_refused() {
                // It costs a packet, and the edge may be there in a moment.
                wait = wait.min(REFUSED);
            }
            let reason = reason(&err);
            let is_news = told.as_ref().is_none_or(|(last, at): &(String, Instant)| {
                *last != reason || at.elapsed() >= AGAIN
            });
            if is_news {
                told = Some((reason.clone(), Instant::now()));
                config.observer.tell(Event::Reconnecting { reason, wait });
            }
            sleep(wait.max(SHORTEST)).await;
        }
    }
}

/// Open a session, and tell the observer if that takes long.
async fn with_progress<T>(opening: impl Future<Output = T>, config: &AgentConfig) -> T {
    let mut opening = std::pin::pin!(opening);
    if let Ok(opened) = timeout(LONG, &mut opening).await {
        return opened;
    }
    let notice = format!("no answer from {} yet, still trying", config.server);
    config.observer.tell(Event::Notice(notice));
    opening.await
}

/// Say where a tunnel's requests go. Tunnels with the same upstream share its connections: what one of them
/// leaves idle, another can use.
fn route(
    upstream: &Upstream,
    pools: &mut Vec<Arc<Pool>>,
    crowd: &Crowd,
) -> Result<Route, TrustError> {
    let target = match upstream {
        Upstream::Service(service) => return Ok(Route::Service(service.clone())),
        Upstream::Target(target) => target,
    };
    if let Some(pool) = pools.iter().find(|pool| pool.target() == target) {
        return Ok(Route::Pool(pool.clone()));
    }
    let pool = Arc::new(Pool::new(target.clone(), crowd.clone())?);
    pools.push(pool.clone());
    Ok(Route::Pool(pool))
}

fn reason(err: &ConnectError) -> String {
    let reason = match std::error::Error::source(err) {
        Some(cause) => format!("{err}: {cause}"),
        None => err.to_string(),
    };
    // It may hold what an edge, a proxy or a certificate says.
    escape(&reason).into_owned()
}

/// How long opening a session may take before somebody who waits wants to hear of it.
const LONG: Duration = Duration::from_millis(900);

/// The longest wait for an edge on whose machine nobody listens.
const REFUSED: Duration = Duration::from_millis(500);

/// Sessions that may be opened at once when another has ended, and how often that may happen again: an edge that is
/// restarted by somebody who tries things out is found each time.
const AT_ONCE: u32 = 10;
const AT_ONCE_EVERY: Duration = Duration::from_secs(6);

/// How often the same failure is told.
const AGAIN: Duration = Duration::from_secs(30);

/// An edge that refuses at once must not be asked in a tight loop.
const SHORTEST: Duration = Duration::from_millis(50);

/// The agent cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The edge cannot be used, or does not want us.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// What is needed for TLS to an upstream is missing.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// Another process with the same identity has taken the names over.
    #[error(
        "another qtunnel with this identity has opened the same tunnels and taken them over: stop one of \
         the two, or give this one another name with --subdomain or another identity with --state-dir"
    )]
    Superseded,
    /// Another agent has been told to take the names over.
    #[error(
        "{by}, as somebody wanted (--take-over-name): stop one of the two, or give this one another name \
         with --subdomain"
    )]
    TakenOver {
        /// Which one, in the edge's words.
        by: String,
    },
}
