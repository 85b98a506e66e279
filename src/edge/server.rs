//! The edge's two phases: bind, then serve.

use std::future::pending;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use tracing::{debug, info, warn};

use super::agents::session::Agents;
use super::agents::session_limit::SessionLimit;
use super::agents::unauthenticated::Unauthenticated;
use super::agents::websockets::AgentWebSockets;
use super::config::{EdgeConfig, EdgeIdentity};
#[cfg(unix)]
use super::handover;
use super::handover::{HandoverError, HandoverListener, HandoverState, Takeover};
use super::listen::bind::ListenError;
use super::listen::listeners::Listeners;
use super::listen::reset_keys;
use super::listen::sockets::Sockets;
use super::listen::urls::Urls;
use super::names::lease_file::LeaseFile;
use super::names::registry::Registry;
use super::names::waiting::WaitingRequests;
use super::shutdown::Draining;
use super::visitors::connection_limit::ConnectionLimit;
use super::visitors::context::Visitors;
use super::visitors::http::failure_log::FailureLog;
use super::workers::{WorkerThreads, Workers};
use crate::auth::Tokens;
#[cfg(unix)]
use crate::carrier::EdgeKeys;
#[cfg(unix)]
use crate::carrier::handover::shared_udp::SharedUdp;
use crate::proto::Close;
use crate::state::{StateDir, StateError};
use crate::stream::BufferTotal;
use crate::tls::{CaError, Identity, IdentityError, LocalCa, Pin};

/// An edge that is bound and ready to serve.
pub struct Edge {
    config: EdgeConfig,
    listeners: Listeners,
    identity: Identity,
    tokens: Tokens,
    registry: Registry,
    workers: Workers,
    worker_threads: WorkerThreads,
    /// Accepts a successor process, if this edge can hand over.
    #[cfg(unix)]
    handover_listener: Option<HandoverListener>,
}

impl Edge {
    /// Bind an edge: load or create certificates, and bind addresses. Everything that can fail
    /// happens here.
    ///
    /// # Errors
    /// [`BindError`] names the file or address at fault.
    pub async fn bind(config: EdgeConfig) -> Result<Self, BindError> {
        Self::bind_on(config, Sockets::default()).await
    }

    /// Bind as [`bind`](Self::bind) does, but use these sockets for the configured addresses that
    /// they are bound to.
    ///
    /// # Errors
    /// [`BindError`] names the file or address at fault.
    pub async fn bind_on(config: EdgeConfig, mut sockets: Sockets) -> Result<Self, BindError> {
        let state = StateDir::open(&config.state_dir)?;
        let keys = reset_keys::open(&state)?;
        let edge = Self::prepare(config, &state, |config, identity| {
            Ok(Listeners::start(config, identity, keys, &mut sockets)?)
        })?;
        for addr in sockets.addrs() {
            warn!(%addr, "ignoring an inherited socket that matches no configured address");
        }
        #[cfg(unix)]
        let edge = edge.listen_for_successor(&state, keys, HandoverListener::open);
        Ok(edge)
    }

    /// Bind, and take addresses and agents over from the edge that runs with the same state
    /// directory (hot restart). That edge then drains. Until this returns without an error, it
    /// keeps serving undisturbed.
    ///
    /// # Errors
    /// [`BindError::Handover`] if there is no such edge or it refuses to hand over; otherwise an
    /// error that names the file or address at fault.
    #[cfg(unix)]
    pub async fn take_over(config: EdgeConfig) -> Result<Self, BindError> {
        let state = StateDir::open(&config.state_dir)?;
        let mut takeover = Takeover::ask(&state).await?;
        let keys = reset_keys::open(&state)?.with_random_id_key();
        let mut edge = Self::prepare(config, &state, |config, identity| {
            takeover.check_quic(config.quic)?;
            Ok(Listeners::inherit(config, identity, keys, &mut takeover)?)
        })?;
        takeover.accept().await?;

        // Nothing below may fail: the addresses are ours now.
        edge.listeners.start_reading();
        match open_registry(&edge.config, &state) {
            // Read again, now that the old process has written the file for the last time.
            Ok(registry) => edge.registry = registry,
            Err(err) => {
                warn!(%err, "cannot restore name reservations, agents of the old edge may lose their names")
            }
        }
        if let Err(err) = reset_keys::save(&state, keys) {
            let err = err.to_string();
            warn!(
                err,
                "cannot save the QUIC keys, after a crash agents will take longer to reconnect"
            );
        }
        Ok(
            edge.listen_for_successor(&state, keys, |state, handover_state| {
                HandoverListener::replace(state, handover_state).map(Some)
            }),
        )
    }

    /// Load the certificates and leases, start the workers, and listen.
    fn prepare(
        config: EdgeConfig,
        state: &StateDir,
        listen: impl FnOnce(&EdgeConfig, &Identity) -> Result<Listeners, BindError>,
    ) -> Result<Self, BindError> {
        let identity = match &config.identity {
            EdgeIdentity::LocalCa => LocalCa::open(state)?.issue(&config.domain)?,
            EdgeIdentity::Files { chain, key } => Identity::load(chain, key)?,
        };
        let mut tokens = if config.tokens.is_none() {
            Tokens::open()
        } else {
            Tokens::default()
        };
        config
            .tokens
            .iter()
            .flatten()
            .for_each(|token| tokens.add(token));

        let registry = open_registry(&config, state)?;
        let (workers, worker_threads) = Workers::start(config.workers).map_err(|err| {
            let count = config.workers;
            BindError::Workers { count, err }
        })?;
        let listeners = listen(&config, &identity)?;
        Ok(Self {
            config,
            listeners,
            identity,
            tokens,
            registry,
            workers,
            worker_threads,
            #[cfg(unix)]
            handover_listener: None,
        })
    }

    /// Listen for a successor process. An edge that cannot do so serves nevertheless.
    #[cfg(unix)]
    fn listen_for_successor(
        mut self,
        state: &StateDir,
        keys: EdgeKeys,
        open: impl FnOnce(&StateDir, HandoverState) -> std::io::Result<Option<HandoverListener>>,
    ) -> Self {
        if !handover::SUPPORTED {
            return self;
        }
        let handover_state = self.listeners.handover_state(keys, self.registry.clone());
        self.handover_listener = match handover_state
            .and_then(|handover_state| open(state, handover_state))
        {
            Ok(None) => {
                info!(
                    "another edge runs with this state directory, only that one can be taken over"
                );
                None
            }
            Ok(handover_listener) => handover_listener,
            Err(err) => {
                warn!(%err, "this edge cannot be taken over by a successor");
                None
            }
        };
        self
    }

    /// Return the addresses on which visitors connect over plain HTTP.
    pub fn http_addrs(&self) -> &[SocketAddr] {
        &self.listeners.addrs.http
    }

    /// Return the addresses on which visitors connect over HTTPS.
    pub fn https_addrs(&self) -> &[SocketAddr] {
        &self.listeners.addrs.https
    }

    /// Return the addresses on which agents connect over UDP: none or one.
    pub fn quic_addrs(&self) -> &[SocketAddr] {
        self.listeners.addrs.quic.as_slice()
    }

    /// Return the pin by which agents may recognise this edge.
    pub fn pin(&self) -> Pin {
        self.identity.pin()
    }

    /// Return the directory that keeps the edge's keys and certificates.
    pub fn state_dir(&self) -> &Path {
        &self.config.state_dir
    }

    /// Report whether the certificate was issued by the local CA in the state directory.
    pub fn has_local_ca(&self) -> bool {
        matches!(self.config.identity, EdgeIdentity::LocalCa)
    }

    /// Report whether agents most likely trust this edge without a pin, which they do if this
    /// machine's own certificate authorities vouch for it.
    pub fn is_publicly_trusted(&self) -> bool {
        self.identity.is_publicly_trusted(&self.config.domain)
    }

    /// Serve agents and visitors until `shutdown` resolves, then drain for at most the grace
    /// period.
    pub async fn serve(self, shutdown: impl Future<Output = ()>) {
        let registry = self.registry;
        #[cfg(unix)]
        let udp = self.listeners.udp.clone();
        let draining = Draining::default();
        // Cancelled when draining must end.
        let closing = CancellationToken::new();
        let upgrades = TaskTracker::new();
        let websockets = AgentWebSockets {
            endpoint: self.listeners.endpoint.clone(),
            #[cfg(unix)]
            predecessors: self.listeners.predecessors.clone(),
            tasks: TaskTracker::new(),
            end: CancellationToken::new(),
        };
        let buffer = BufferTotal::new(self.config.limits.buffer);
        let agents = Arc::new(Agents {
            registry: registry.clone(),
            endpoint: self.listeners.endpoint.clone(),
            tokens: self.tokens,
            limits: self.config.limits,
            unauthenticated: Unauthenticated::new(&self.config.limits),
            sessions: SessionLimit::new(&self.config.limits),
            workers: self.workers.clone(),
            buffer: buffer.clone(),
            urls: Urls::new(&self.config, &self.listeners.addrs),
            draining: draining.clone(),
            grace_period: self.config.grace_period,
        });
        let failure_log = FailureLog::default();
        let visitors = Arc::new(Visitors {
            waiting: WaitingRequests::new(registry.clone(), self.config.hold, &self.config.limits),
            domain: self.config.domain.to_ascii_lowercase(),
            limits: self.config.limits,
            buffer,
            connection_limit: ConnectionLimit::default(),
            failure_log: failure_log.clone(),
            workers: self.workers,
            trusted_proxies: self.config.trusted_proxies,
            redirect: self.config.redirect_https.then(|| {
                self.listeners
                    .addrs
                    .https
                    .first()
                    .map_or(443, SocketAddr::port)
            }),
            websockets: websockets.clone(),
            upgrades: upgrades.clone(),
            draining: draining.clone(),
            closing: closing.clone(),
        });

        let mut sessions = JoinSet::new();
        sessions.spawn(agents.clone().accept());
        let flush = CancellationToken::new();
        let mut lease_writer = JoinSet::new();
        lease_writer.spawn(registry.write_loop(flush.clone()));
        // Aborted when this function returns.
        let _reporting = AbortOnDropHandle::new(tokio::spawn(failure_log.report()));
        let mut listeners = JoinSet::new();
        for listener in self.listeners.visitors {
            listeners.spawn(visitors.clone().accept(listener));
        }
        #[cfg(unix)]
        let (handed_over, orphaned) = (
            handed_over(self.handover_listener, &websockets),
            orphaned(udp),
        );
        #[cfg(not(unix))]
        let (handed_over, orphaned) = (pending::<()>(), pending::<()>());
        let mut shutdown = pin!(shutdown);
        tokio::select! {
            biased;
            () = &mut shutdown => draining.stop(),
            () = handed_over => draining.hand_over(),
        }

        // Order of shutdown: refuse new visitors; announce it to the agents; let conversations
        // finish, or cut them when the grace period is over; close the agents' connections.
        info!(grace = ?self.config.grace_period, successor = draining.has_successor(), "draining");
        upgrades.close();
        let drained = async {
            while listeners.join_next().await.is_some() {}
            upgrades.wait().await;
        };
        let shutdown = draining.has_successor().then_some(shutdown);
        drain(drained, self.config.grace_period, shutdown, orphaned).await;
        closing.cancel();
        listeners.shutdown().await;
        // Gives the agents time to receive the close, and does not wait for one that does not respond.
        let endpoint = self.listeners.endpoint;
        endpoint.close(Close::Done.code(), b"the edge stops").await;
        websockets.end.cancel();
        websockets.tasks.close();
        websockets.tasks.wait().await;
        sessions.shutdown().await;
        flush.cancel();
        let written = async { while lease_writer.join_next().await.is_some() {} };
        if timeout(FINAL_WRITE_TIMEOUT, written).await.is_err() {
            warn!("the state directory does not respond, name reservations may be lost");
        }
        drop(self.worker_threads);
        debug!("closed");
    }
}

/// Open the registry, with the leases of the last edge.
fn open_registry(config: &EdgeConfig, state: &StateDir) -> Result<Registry, StateError> {
    let (lease_file, restored) = LeaseFile::open(state.clone())?;
    Ok(Registry::new(config.lease, lease_file, restored))
}

/// Wait for `conversations`, until the grace period is over or the successor is gone.
async fn drain(
    conversations: impl Future<Output = ()>,
    grace: Duration,
    shutdown: Option<impl Future<Output = ()>>,
    orphaned: impl Future<Output = ()>,
) {
    // After a handover, `shutdown` has no further effect, but polling it may install the handler of
    // the next signal.
    let stopped = async {
        if let Some(shutdown) = shutdown {
            shutdown.await;
        }
        pending::<()>().await;
    };
    tokio::select! {
        drained = timeout(grace, conversations) => if drained.is_err() {
            warn!("the grace period is over, cutting the conversations that are left");
        },
        () = orphaned => warn!("the successor is gone, cutting the conversations that are left"),
        () = stopped => {}
    }
}

/// Wait until a successor has taken over, and receive our agents' WebSockets from it. When dropped,
/// it closes the handover listener, whose copies of the sockets would keep the addresses in use.
#[cfg(unix)]
async fn handed_over(handover_listener: Option<HandoverListener>, websockets: &AgentWebSockets) {
    match handover_listener {
        Some(handover_listener) => websockets.receive(handover_listener.hand_over().await),
        None => pending().await,
    }
}

/// Wait until the successor process is gone.
#[cfg(unix)]
async fn orphaned(udp: Option<Arc<SharedUdp>>) {
    match udp {
        Some(udp) => udp.orphaned().await,
        None => pending().await,
    }
}

/// Timeout of the final write to the state directory: its disk may never respond.
const FINAL_WRITE_TIMEOUT: Duration = Duration::from_secs(2);

/// Reason why an edge cannot start.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The state directory cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// The local CA cannot be used.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// The certificate or its key cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// An address cannot be listened on.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The system cannot start so many threads.
    #[error("cannot start {count} worker threads; ask for fewer")]
    Workers {
        /// Number of workers that the configuration asks for.
        count: NonZeroUsize,
        /// The system's error.
        #[source]
        err: std::io::Error,
    },
    /// The running edge cannot be taken over.
    #[cfg(unix)]
    #[error(transparent)]
    Handover(#[from] HandoverError),
}
