//! The agent's two phases: connect, then serve, reconnecting whenever the session is lost.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tracing::debug;

use super::config::AgentConfig;
use super::event::Event;
use super::forward::cdn_loop::CdnId;
use super::forward::{Route, ServedTunnel};
use super::session::backoff::Backoff;
use super::session::connect_error::ConnectError;
use super::session::draining::DrainingSessions;
use super::session::log_throttle::LogThrottle;
use super::session::open::{Session, SessionEnd, SessionIdentity};
use super::upstream::Upstream;
use super::upstream::pool::Pool;
use super::upstream::read_limit::ActiveConnections;
use crate::carrier::PathMemory;
use crate::proto::{ClaimMode, LOST_LIMIT, LostSession, Refusal, TunnelGrant, escape};
use crate::stream::RateLimit;
use crate::tls::TrustError;

/// An agent that is connected.
pub struct Agent {
    config: AgentConfig,
    tunnels: Arc<Vec<Arc<ServedTunnel>>>,
    session: Session,
    opener: Opener,
}

impl Agent {
    /// Connect to the edge and open the tunnels. Temporary failures are reported to the observer and
    /// retried without limit; drop the future to give up.
    ///
    /// # Errors
    /// [`AgentError`] if a retry cannot help, or at the first failure with
    /// [`AgentConfig::exit_on_failure`].
    pub async fn connect(config: AgentConfig) -> Result<Self, AgentError> {
        let (mut pools, active) = (Vec::new(), ActiveConnections::default());
        let tunnels = Arc::new(
            config
                .tunnels
                .iter()
                .map(|tunnel| {
                    Ok(Arc::new(ServedTunnel {
                        route: route(&tunnel.upstream, &mut pools, &active)?,
                        host_header: tunnel.host_header.clone(),
                        upgrades: tunnel.upgrades.clone(),
                        cdn_id: CdnId::random(),
                        removed_cookies: LogThrottle::default(),
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
                config.observer.emit(Event::UpstreamDown {
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

    /// Serve until `shutdown` resolves, then drain for at most the grace period. A lost session is
    /// replaced by a new one.
    ///
    /// # Errors
    /// [`AgentError`] if the edge refuses the agent permanently.
    pub async fn serve(self, shutdown: impl Future<Output = ()>) -> Result<(), AgentError> {
        let Self {
            config,
            tunnels,
            mut session,
            mut opener,
        } = self;
        let mut draining = DrainingSessions::new(config.clone(), tunnels.clone());
        let mut shutdown = std::pin::pin!(draining.stopped_with(shutdown));
        loop {
            let ended = session.serve(&config, &tunnels, &mut shutdown).await;
            let wait = opener.restart();
            match ended {
                SessionEnd::Shutdown => break,
                SessionEnd::TakenOver(by) => return Err(AgentError::TakenOver { by }),
                SessionEnd::Superseded => {
                    opener.next.claim = ClaimMode::Superseded;
                    let reason = "another process with this agent's identity has taken its names";
                    let reason = reason.into();
                    config.observer.emit(Event::Reconnecting { reason, wait });
                }
                SessionEnd::Replaced(session) => {
                    let notice = "a newer process of the edge takes over";
                    config.observer.emit(Event::Notice(notice.into()));
                    draining.adopt(*session);
                }
                SessionEnd::Lost { reason, report } => {
                    opener.report_lost(report);
                    debug!(reason, "session lost");
                    config.observer.emit(Event::Reconnecting { reason, wait });
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
        draining.ended().await;
        Ok(())
    }
}

/// Opens the sessions, one after the other.
struct Opener {
    backoff: Backoff,
    /// A session has been opened before.
    was_connected: bool,
    /// The rate limit for reconnecting without a wait.
    immediate: RateLimit,
    /// The identity of the next session.
    next: SessionIdentity,
    /// Reports about lost sessions, the latest first.
    lost: Vec<LostSession>,
    /// The path properties that earlier sessions measured.
    memory: PathMemory,
}

impl Opener {
    fn new(config: &AgentConfig) -> Self {
        let mut backoff = Backoff::default();
        // The first attempt is made without a wait.
        backoff.next();
        Self {
            backoff,
            was_connected: false,
            immediate: RateLimit::new(IMMEDIATE_RECONNECTS, IMMEDIATE_RECONNECT_INTERVAL),
            next: SessionIdentity::first(match config.take_over_names {
                true => ClaimMode::TakeOver,
                false => ClaimMode::Own,
            }),
            lost: Vec::new(),
            memory: PathMemory::default(),
        }
    }

    /// Reset the backoff after a session, and return the wait before the next attempt. The backoff is not reset if
    /// that happens too often: an edge that ends sessions as quickly as they are opened is not contacted in a tight
    /// loop.
    fn restart(&mut self) -> Duration {
        if self.immediate.take() {
            self.backoff.reset();
        }
        self.backoff.next()
    }

    /// Report a lost session to the edge when the next one is opened.
    fn report_lost(&mut self, report: LostSession) {
        self.lost.insert(0, report);
        self.lost.truncate(LOST_LIMIT);
    }

    /// Open a session, with retries.
    async fn open(&mut self, config: &AgentConfig) -> Result<Session, AgentError> {
        let mut reported = None;
        loop {
            let identity = self.next;
            self.next.epoch += 1;
            let opening = Session::open(config, identity, &self.lost, &self.memory);
            let err = match with_progress(opening, config).await {
                Ok(session) => {
                    self.was_connected = true;
                    // A takeover is claimed once, not at every reconnection.
                    self.next.claim = ClaimMode::Own;
                    let tunnels = session.welcome.tunnels.clone();
                    config.observer.emit(Event::Ready {
                        tunnels,
                        transport: session.link_stats(),
                    });
                    return Ok(session);
                }
                Err(err) => err,
            };
            let taken = matches!(err, ConnectError::Refused(Refusal::NameTaken { .. }));
            if taken && identity.claim == ClaimMode::Superseded {
                return Err(AgentError::Superseded);
            }
            // An agent that took the names during a long absence may give them up again.
            let is_permanent = err.is_permanent() && !(taken && self.was_connected);
            if is_permanent || config.exit_on_failure {
                return Err(err.into());
            }
            if !matches!(err, ConnectError::Unreachable { .. }) {
                // The edge may have started to send requests before the session was lost.
                self.report_lost(LostSession {
                    epoch: identity.epoch,
                    accepted: 0,
                    unread: Vec::new(),
                });
            }
            if let ConnectError::Unreachable { tried, .. } = &err {
                debug!(%tried, "the edge cannot be reached");
            }
            let mut wait = self.backoff.next();
            if err.is_refused() {
                // An attempt costs one packet, and the edge may be back in a moment.
                wait = wait.min(MAX_REFUSED_WAIT);
            }
            let reason = reason(&err);
            let is_news = reported
                .as_ref()
                .is_none_or(|(last, at): &(String, Instant)| {
                    *last != reason || at.elapsed() >= REPEAT_INTERVAL
                });
            if is_news {
                reported = Some((reason.clone(), Instant::now()));
                config.observer.emit(Event::Reconnecting { reason, wait });
            }
            sleep(wait.max(MIN_WAIT)).await;
        }
    }
}

/// Wait for a session, and notify the observer if that takes longer than [`SLOW_OPEN`].
async fn with_progress<T>(opening: impl Future<Output = T>, config: &AgentConfig) -> T {
    let mut opening = std::pin::pin!(opening);
    if let Ok(opened) = timeout(SLOW_OPEN, &mut opening).await {
        return opened;
    }
    let notice = format!("no answer from {} yet, still trying", config.server);
    config.observer.emit(Event::Notice(notice));
    opening.await
}

/// Return the route of a tunnel. Tunnels with the same upstream share a pool, so that one can reuse the idle
/// connections of another.
fn route(
    upstream: &Upstream,
    pools: &mut Vec<Arc<Pool>>,
    active: &ActiveConnections,
) -> Result<Route, TrustError> {
    let target = match upstream {
        Upstream::Service(service) => return Ok(Route::Service(service.clone())),
        Upstream::Target(target) => target,
    };
    if let Some(pool) = pools.iter().find(|pool| pool.target() == target) {
        return Ok(Route::Pool(pool.clone()));
    }
    let pool = Arc::new(Pool::new(target.clone(), active.clone())?);
    pools.push(pool.clone());
    Ok(Route::Pool(pool))
}

/// Format an error and its cause for display.
fn reason(err: &ConnectError) -> String {
    let reason = match std::error::Error::source(err) {
        Some(cause) => format!("{err}: {cause}"),
        None => err.to_string(),
    };
    // It may contain text from an edge, a proxy or a certificate.
    escape(&reason).into_owned()
}

/// The time after which opening a session is reported as slow.
const SLOW_OPEN: Duration = Duration::from_millis(900);

/// The longest wait while the edge's host refuses connections.
const MAX_REFUSED_WAIT: Duration = Duration::from_millis(500);

/// Lost sessions that may be followed by an attempt without a wait, in a burst: an edge that is restarted several
/// times by hand is found each time.
const IMMEDIATE_RECONNECTS: u32 = 10;

/// The interval at which one more immediate attempt is allowed.
const IMMEDIATE_RECONNECT_INTERVAL: Duration = Duration::from_secs(6);

/// The interval at which the same failure is reported again.
const REPEAT_INTERVAL: Duration = Duration::from_secs(30);

/// The shortest wait between two attempts: an edge that refuses at once must not be contacted in a tight loop.
const MIN_WAIT: Duration = Duration::from_millis(50);

/// A permanent failure of the agent.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The edge cannot be used, or refuses this agent.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// TLS to an upstream cannot be configured.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// Another process with the same identity has taken over the names.
    #[error(
        "another qtunnel with this identity has opened the same tunnels and taken them over: stop one of \
         the two, or give this one another name with --subdomain or another identity with --state-dir"
    )]
    Superseded,
    /// Another agent was told to take over the names.
    #[error(
        "{by}, because it was told to (--take-over-name): stop one of the two, or give this one another name \
         with --subdomain"
    )]
    TakenOver {
        /// The description of that agent, from the edge.
        by: String,
    },
}
