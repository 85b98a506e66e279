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
use super::agents::session_limit::Sessions;
use super::agents::unauthenticated::Unauthenticated;
use super::agents::websockets::Carriers;
use super::config::{EdgeConfig, EdgeIdentity};
#[cfg(unix)]
use super::handover;
use super::handover::{HandoverError, HandoverListener, HandoverState, Takeover};
use super::listen::bind::ListenError;
use super::listen::listeners::Listening;
use super::listen::reset_keys;
use super::listen::sockets::Sockets;
use super::listen::urls::Urls;
use super::names::lease_file::LeaseFile;
use super::names::registry::Registry;
use super::names::waiting::Hold;
use super::shutdown::Draining;
use super::visitors::accept::Visitors;
use super::visitors::connection_limit::Crowd;
use super::visitors::http::failure_log::Failures;
use super::workers::{WorkerThreads, Workers};
use crate::auth::Tokens;
use crate::carrier::Paths;
#[cfg(unix)]
use crate::carrier::{EdgeKeys, SharedUdp};
use crate::proto::Close;
use crate::state::{StateDir, StateError};
use crate::stream::BufferTotal;
use crate::tls::{CaError, Identity, IdentityError, LocalCa, Pin};

/// An edge that is bound and ready to serve.
pub struct Edge {
    config: EdgeConfig,
    listening: Listening,
    identity: Identity,
    tokens: Tokens,
    registry: Registry,
    workers: Workers,
    crew: WorkerThreads,
    /// Where a successor would come.
    #[cfg(unix)]
    door: Option<HandoverListener>,
}

impl Edge {
    /// Do all that can fail: load or make certificates, bind addresses.
    ///
    /// # Errors
    /// [`BindError`] names the file or address.
    pub async fn bind(config: EdgeConfig) -> Result<Self, BindError> {
        Self::bind_on(config, Sockets::default()).await
    }

    /// Bind as [`bind`](Self::bind) does, but use these sockets where their addresses are wanted.
    ///
    /// # Errors
    /// [`BindError`] names the file or address.
    pub async fn bind_on(config: EdgeConfig, mut sockets: Sockets) -> Result<Self, BindError> {
        let state = StateDir::open(&config.state_dir)?;
        let keys = reset_keys::open(&state)?;
        let edge = Self::prepare(config, &state, |config, identity| {
            Listening::start(config, identity, keys, &mut sockets)
        })?;
        for addr in sockets.addrs() {
            warn!(%addr, "a socket that was passed is for no address of ours");
        }
        #[cfg(unix)]
        let edge = edge.open_door(&state, keys, HandoverListener::open);
        Ok(edge)
    }

    /// Bind, and take the addresses and agents over from the edge that runs with the same state
    /// directory. From then on that one drains. Until this returns without an error, it serves on as
    /// if nothing had happened.
    ///
    /// # Errors
    /// [`BindError::Handover`] if there is no such edge or it does not hand over; otherwise the file
    /// or address that does not work.
    #[cfg(unix)]
    pub async fn take_over(config: EdgeConfig) -> Result<Self, BindError> {
        let state = StateDir::open(&config.state_dir)?;
        let mut inheritance = Takeover::ask(&state).await?;
        let keys = reset_keys::open(&state)?.with_other_ids();
        let mut edge = Self::prepare(config, &state, |config, identity| {
            Listening::inherit(config, identity, keys, &mut inheritance)
        })?;
        inheritance.accept().await?;

        // Nothing may fail any more: the addresses are ours.
        edge.listening.begin();
        match open_registry(&edge.config, &state) {
            // Now that its last word is written.
            Ok(registry) => edge.registry = registry,
            Err(err) => warn!(%err, "names are not kept for the agents of before"),
        }
        if let Err(err) = reset_keys::keep(&state, keys) {
            let err = err.to_string();
            warn!(err, "agents will need longer to come back after a crash");
        }
        Ok(edge.open_door(&state, keys, |state, estate| {
            HandoverListener::replace(state, estate).map(Some)
        }))
    }

    fn prepare(
        config: EdgeConfig,
        state: &StateDir,
        listen: impl FnOnce(&EdgeConfig, &Identity) -> Result<Listening, BindError>,
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
        let (workers, crew) = Workers::start(config.workers).map_err(|err| {
            let count = config.workers;
            BindError::Workers { count, err }
        })?;
        let listening = listen(&config, &identity)?;
        Ok(Self {
            config,
            listening,
            identity,
            tokens,
            registry,
            workers,
            crew,
            #[cfg(unix)]
            door: None,
        })
    }

    /// Let a successor in. An edge that cannot do that serves all the same.
    #[cfg(unix)]
    fn open_door(
        mut self,
        state: &StateDir,
        keys: EdgeKeys,
        open: impl FnOnce(&StateDir, HandoverState) -> std::io::Result<Option<HandoverListener>>,
    ) -> Self {
        if !handover::SUPPORTED {
            return self;
        }
        let estate = self.listening.estate(keys, self.registry.clone());
        self.door = match estate.and_then(|estate| open(state, estate)) {
            Ok(None) => {
                info!(
                    "another edge runs with this state directory, and a successor would be its own"
                );
                None
            }
            Ok(door) => door,
            Err(err) => {
                warn!(%err, "no other process will be able to take over from this one");
                None
            }
        };
        self
    }

    /// Return where visitors connect in clear text.
    pub fn http_addrs(&self) -> &[SocketAddr] {
        &self.listening.addrs.http
    }

    /// Return where visitors connect over TLS.
    pub fn https_addrs(&self) -> &[SocketAddr] {
        &self.listening.addrs.https
    }

    /// Return where agents connect over UDP.
    pub fn quic_addrs(&self) -> &[SocketAddr] {
        self.listening.addrs.quic.as_slice()
    }

    /// Return the pin by which agents may recognise this edge.
    pub fn pin(&self) -> Pin {
        self.identity.pin()
    }

    /// Return the directory that keeps the edge's keys and certificates.
    pub fn state_dir(&self) -> &Path {
        &self.config.state_dir
    }

    /// Report whether the certificate is one of the authority in the state directory.
    pub fn has_local_ca(&self) -> bool {
        matches!(self.config.identity, EdgeIdentity::LocalCa)
    }

    /// Report whether agents most likely recognise this edge without a pin: whether this machine's
    /// own certificate authorities vouch for it.
    pub fn is_publicly_trusted(&self) -> bool {
        self.identity.is_publicly_trusted(&self.config.domain)
    }

    /// Serve agents and visitors until `shutdown`, then drain for as long as the grace period.
    pub async fn serve(self, shutdown: impl Future<Output = ()>) {
        let registry = self.registry;
        #[cfg(unix)]
        let udp = self.listening.udp.clone();
        let draining = Draining::default();
        // Cancelled when draining must end.
        let closing = CancellationToken::new();
        let upgrades = TaskTracker::new();
        let carriers = Carriers {
            socket: self.listening.socket.clone(),
            #[cfg(unix)]
            predecessors: self.listening.predecessors.clone(),
            pumps: TaskTracker::new(),
            end: CancellationToken::new(),
        };
        let buffer = BufferTotal::new(self.config.limits.buffer);
        let agents = Arc::new(Agents {
            registry: registry.clone(),
            socket: self.listening.socket,
            quic: self.listening.quic,
            nearby: self.listening.nearby,
            paths: Paths::default(),
            tokens: self.tokens,
            limits: self.config.limits,
            unauthenticated: Unauthenticated::new(&self.config.limits),
            sessions: Sessions::new(&self.config.limits),
            workers: self.workers.clone(),
            buffer: buffer.clone(),
            urls: Urls::new(&self.config, &self.listening.addrs),
            draining: draining.clone(),
            grace_period: self.config.grace_period,
        });
        let failures = Failures::default();
        let visitors = Arc::new(Visitors {
            hold: Hold::new(registry.clone(), self.config.hold, &self.config.limits),
            domain: self.config.domain.to_ascii_lowercase(),
            limits: self.config.limits,
            buffer,
            crowd: Crowd::default(),
            failures: failures.clone(),
            workers: self.workers,
            trusted_proxies: self.config.trusted_proxies,
            redirect: self.config.redirect_https.then(|| {
                self.listening
                    .addrs
                    .https
                    .first()
                    .map_or(443, SocketAddr::port)
            }),
            carriers: carriers.clone(),
            upgrades: upgrades.clone(),
            draining: draining.clone(),
            closing: closing.clone(),
        });

        let mut sessions = JoinSet::new();
        sessions.spawn(agents.clone().accept(self.listening.endpoint.clone()));
        let written = CancellationToken::new();
        let mut keeper = JoinSet::new();
        keeper.spawn(registry.keep(written.clone()));
        // Ends with this function.
        let _reporting = AbortOnDropHandle::new(tokio::spawn(failures.report()));
        let mut listeners = JoinSet::new();
        for listener in self.listening.listeners {
            listeners.spawn(visitors.clone().accept(listener));
        }
        #[cfg(unix)]
        let (handed_over, orphaned) = (handed_over(self.door, &carriers), orphaned(udp));
        #[cfg(not(unix))]
        let (handed_over, orphaned) = (pending::<()>(), pending::<()>());
        let mut shutdown = pin!(shutdown);
        tokio::select! {
            biased;
            () = &mut shutdown => draining.stop(),
            () = handed_over => draining.hand_over(),
        }

        // The order: no new visitors; agents hear of it; conversations under way end, or are cut
        // when the grace period is over; then the agents' connections are closed.
        info!(grace = ?self.config.grace_period, successor = draining.is_succeeded(), "draining");
        upgrades.close();
        let drained = async {
            while listeners.join_next().await.is_some() {}
            upgrades.wait().await;
        };
        let shutdown = draining.is_succeeded().then_some(shutdown);
        drain(drained, self.config.grace_period, shutdown, orphaned).await;
        closing.cancel();
        listeners.shutdown().await;
        self.listening
            .endpoint
            .close(Close::Done.code(), b"the edge stops");
        // So that the agents hear of it; one that does not answer is not waited for.
        let _ = tokio::time::timeout(FAREWELL, self.listening.endpoint.wait_idle()).await;
        carriers.end.cancel();
        carriers.pumps.close();
        carriers.pumps.wait().await;
        sessions.shutdown().await;
        written.cancel();
        let kept = async { while keeper.join_next().await.is_some() {} };
        if timeout(LAST_WRITE, kept).await.is_err() {
            warn!("the state directory does not answer: names may not be kept");
        }
        drop(self.crew);
        debug!("closed");
    }
}

fn open_registry(config: &EdgeConfig, state: &StateDir) -> Result<Registry, StateError> {
    let (lease_file, kept) = LeaseFile::open(state.clone())?;
    Ok(Registry::new(config.lease, lease_file, kept))
}

/// Wait for what is under way, but not for ever.
async fn drain(
    conversations: impl Future<Output = ()>,
    grace: Duration,
    shutdown: Option<impl Future<Output = ()>>,
    orphaned: impl Future<Output = ()>,
) {
    // It has no further effect, but may arrange for that of the next signal.
    let stopped = async {
        if let Some(shutdown) = shutdown {
            shutdown.await;
        }
        pending::<()>().await;
    };
    tokio::select! {
        drained = timeout(grace, conversations) => if drained.is_err() {
            warn!("the grace period is over, cutting what is left");
        },
        () = orphaned => warn!("the successor is gone, cutting what is left"),
        () = stopped => {}
    }
}

/// Wait until a successor is in charge, and let our agents' WebSockets come from it. Dropped, it closes
/// the door, whose copies of the listeners would keep the addresses in use.
#[cfg(unix)]
async fn handed_over(door: Option<HandoverListener>, carriers: &Carriers) {
    match door {
        Some(door) => carriers.receive(door.hand_over().await),
        None => pending().await,
    }
}

/// Wait until the successor is gone.
#[cfg(unix)]
async fn orphaned(udp: Option<Arc<SharedUdp>>) {
    match udp {
        Some(udp) => udp.orphaned().await,
        None => pending().await,
    }
}

/// How long to wait for agents to acknowledge that the edge stops.
const FAREWELL: Duration = Duration::from_secs(1);

/// How long the last write to the state directory may take. Its disk may never answer.
const LAST_WRITE: Duration = Duration::from_secs(2);

/// The edge cannot start.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The state directory does not work.
    #[error(transparent)]
    State(#[from] StateError),
    /// The local CA does not work.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// The certificate or its key cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// An address cannot be listened on.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The system has no more threads.
    #[error("cannot start {count} worker threads; ask for fewer")]
    Workers {
        /// How many were wanted.
        count: NonZeroUsize,
        /// What the system says.
        #[source]
        err: std::io::Error,
    },
    /// The running edge cannot be succeeded.
    #[cfg(unix)]
    #[error(transparent)]
    Handover(#[from] HandoverError),
}
