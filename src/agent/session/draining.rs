//! Sessions with a former process of the edge.

use std::sync::Arc;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::open::Session;
use crate::agent::config::AgentConfig;
use crate::agent::forward::ServedTunnel;

/// Sessions with processes of the edge that another one has replaced. Each is served until its
/// process closes it: visitors who came before the change still talk through it.
pub struct DrainingSessions {
    config: AgentConfig,
    tunnels: Arc<Vec<Arc<ServedTunnel>>>,
    sessions: JoinSet<()>,
    stopping: CancellationToken,
}

impl DrainingSessions {
    /// Begin with none.
    pub fn new(config: AgentConfig, tunnels: Arc<Vec<Arc<ServedTunnel>>>) -> Self {
        Self {
            config,
            tunnels,
            sessions: JoinSet::new(),
            stopping: CancellationToken::new(),
        }
    }

    /// Have the sessions drain when `shutdown` resolves, which the returned future does then, too.
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

    /// Serve a session to its end, of which nobody needs to hear.
    pub fn adopt(&mut self, session: Session) {
        while self.sessions.try_join_next().is_some() {}
        if self.sessions.len() >= SESSIONS {
            debug!("too many former sessions");
            return;
        }
        let (config, tunnels) = (self.config.clone(), self.tunnels.clone());
        let stopping = self.stopping.clone();
        self.sessions.spawn(async move {
            let mut stopped = Box::pin(stopping.cancelled());
            session.serve(&config, &tunnels, &mut stopped).await;
            debug!("a former session has ended");
        });
    }

    /// Wait until all have ended.
    pub async fn ended(mut self) {
        while self.sessions.join_next().await.is_some() {}
    }
}

/// Each belongs to a process of the edge that still drains. More of them on one machine is a mistake.
const SESSIONS: usize = 8;
