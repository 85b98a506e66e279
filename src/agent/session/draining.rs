//! Sessions with older processes of the edge that are draining.

use std::sync::Arc;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::open::Session;
use crate::agent::config::AgentConfig;
use crate::agent::forward::ServedTunnel;

/// Sessions with processes of the edge that a successor has replaced (hot restart). Each is served until its
/// process closes it, because visitors who arrived before the handover still use it.
pub struct DrainingSessions {
    config: AgentConfig,
    tunnels: Arc<Vec<Arc<ServedTunnel>>>,
    sessions: JoinSet<()>,
    /// Cancelled when the agent shuts down.
    stopping: CancellationToken,
}

impl DrainingSessions {
    /// Create an empty set.
    pub fn new(config: AgentConfig, tunnels: Arc<Vec<Arc<ServedTunnel>>>) -> Self {
        Self {
            config,
            tunnels,
            sessions: JoinSet::new(),
            stopping: CancellationToken::new(),
        }
    }

    /// Wrap `shutdown`: when it resolves, these sessions start to drain and the returned future resolves, too.
    pub fn stopped_with<S: Future<Output = ()>>(
        &self,
        shutdown: S,
    ) -> impl Future<Output = ()> + use<S> {
        let stopping = self.stopping.clone();
        async move {
            shutdown.await;
            stopping.cancel();
        }
    }

    /// Serve a session in a task of its own until it ends. Its end is only logged: the agent has a newer session.
    /// If [`MAX_SESSIONS`] are being served already, the session is closed instead.
    pub fn adopt(&mut self, session: Session) {
        while self.sessions.try_join_next().is_some() {}
        if self.sessions.len() >= MAX_SESSIONS {
            debug!("too many draining sessions, closing this one");
            return;
        }
        let (config, tunnels) = (self.config.clone(), self.tunnels.clone());
        let stopping = self.stopping.clone();
        self.sessions.spawn(async move {
            let mut stopped = Box::pin(stopping.cancelled());
            session.serve(&config, &tunnels, &mut stopped).await;
            debug!("a draining session has ended");
        });
    }

    /// Wait until all sessions have ended.
    pub async fn ended(mut self) {
        while self.sessions.join_next().await.is_some() {}
    }
}

/// The most sessions that drain at the same time. Each belongs to a process of the edge that is still draining;
/// more of them on one host are a mistake.
const MAX_SESSIONS: usize = 8;
