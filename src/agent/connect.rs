//! The agent's two phases: connect, then serve, reconnecting for ever.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use tracing::debug;

use super::backoff::Backoff;
use super::config::AgentConfig;
use super::connect_error::ConnectError;
use super::event::Event;
use super::forward::{Route, Tunnel};
use super::pool::Pool;
use super::session::{Ended, Session};
use super::upstream::Upstream;
use crate::proto::TunnelGrant;
use crate::tls::TrustError;

/// An agent that is connected.
pub struct Agent {
    config: AgentConfig,
    tunnels: Arc<Vec<Arc<Tunnel>>>,
    session: Session,
    backoff: Backoff,
}

impl Agent {
    /// Connect to the edge and open the tunnels. Failures that may pass are reported to the
    /// observer and tried again, for ever; drop the future to give up.
    ///
    /// # Errors
    /// [`AgentError`] if trying again can never help.
    pub async fn connect(config: AgentConfig) -> Result<Self, AgentError> {
        let tunnels = Arc::new(
            config
                .tunnels
                .iter()
                .map(|tunnel| {
                    let route = match &tunnel.upstream {
                        Upstream::Target(target) => Route::Pool(Pool::new(target.clone())?),
                        Upstream::Service(service) => Route::Service(service.clone()),
                    };
                    Ok(Arc::new(Tunnel {
                        route,
                        host_header: tunnel.host_header.clone(),
                        timeout: config.upstream_timeout,
                        observer: config.observer.clone(),
                    }))
                })
                .collect::<Result<Vec<_>, TrustError>>()?,
        );
        let mut backoff = Backoff::default();
        // The first attempt is made below, at once.
        backoff.next();
        let session = open(&config, &mut backoff).await?;
        for tunnel in tunnels.iter() {
            if let Route::Pool(pool) = &tunnel.route
                && let Err(err) = pool.probe().await
            {
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
            backoff,
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
            mut backoff,
        } = self;
        let mut shutdown = std::pin::pin!(shutdown);
        loop {
            let reason = match session.serve(&config, &tunnels, &mut shutdown).await {
                Ended::Shutdown => return Ok(()),
                Ended::Superseded => return Err(AgentError::Superseded),
                Ended::Lost(reason) => reason,
            };
            debug!(reason, "session lost");
            backoff.reset();
            let wait = backoff.next();
            config.observer.tell(Event::Reconnecting { reason, wait });
            session = tokio::select! {
                opened = open(&config, &mut backoff) => opened?,
                () = &mut shutdown => return Ok(()),
            };
        }
    }
}

async fn open(config: &AgentConfig, backoff: &mut Backoff) -> Result<Session, AgentError> {
    loop {
        match Session::open(config).await {
            Ok(session) => {
                let tunnels = session.welcome.tunnels.clone();
                config.observer.tell(Event::Ready {
                    tunnels,
                    transport: session.transport_now(),
                });
                return Ok(session);
            }
            Err(err) if err.is_permanent() || config.exit_on_failure => return Err(err.into()),
            Err(err) => {
                let wait = backoff.next();
                config.observer.tell(Event::Reconnecting {
                    reason: reason(&err),
                    wait,
                });
                sleep(wait.max(SHORTEST)).await;
            }
        }
    }
}

fn reason(err: &ConnectError) -> String {
    match std::error::Error::source(err) {
        Some(cause) => format!("{err}: {cause}"),
        None => err.to_string(),
    }
}

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
         the two, or give this one another name with --subdomain"
    )]
    Superseded,
}
