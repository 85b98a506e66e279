//! The running edge's side of a handover.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::{UnixListener, UnixStream};
use tracing::{debug, warn};

use super::SOCKET;
use super::message::{ANSWER, Channel, DESCRIPTORS, HandoverError, Message, VERSION};
use crate::carrier::{PassedWebSockets, Predecessors, SharedUdp, Successor};
use crate::edge::names::registry::Registry;
use crate::state::StateDir;

/// Where a successor comes to take over.
pub struct HandoverListener {
    listener: UnixListener,
    estate: HandoverState,
}

/// What a successor gets.
pub struct HandoverState {
    /// The listening sockets, those for UDP too.
    pub sockets: Vec<OwnedFd>,
    /// The UDP socket, if agents come over UDP.
    pub udp: Option<Arc<SharedUdp>>,
    /// The edges before this one.
    pub predecessors: Predecessors,
    /// What marks the ids of our connections.
    pub ids: u64,
    /// The names that are held, of which the file in the state directory tells.
    pub registry: Registry,
}

impl HandoverListener {
    /// Open the door of an edge that was not there before. If another edge runs with the same state
    /// directory, that one's door is left alone, and there is none.
    ///
    /// # Errors
    /// If the socket cannot be made.
    pub fn open(state: &StateDir, estate: HandoverState) -> io::Result<Option<Self>> {
        if connect(&state.path(SOCKET)).is_ok() {
            return Ok(None);
        }
        Self::replace(state, estate).map(Some)
    }

    /// Open the door in place of the predecessor's.
    ///
    /// # Errors
    /// If the socket cannot be made.
    pub fn replace(state: &StateDir, estate: HandoverState) -> io::Result<Self> {
        let path = state.path(SOCKET);
        let temporary = state.path(&format!(".{SOCKET}.{}", std::process::id()));
        let _ = fs::remove_file(&temporary);
        let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None)?;
        socket.set_nonblocking(true)?;
        socket.bind(&SockAddr::unix(&temporary)?)?;
        fs::set_permissions(&temporary, fs::Permissions::from_mode(0o600))?;
        socket.listen(WAITING)?;
        fs::rename(&temporary, path)?;
        let listener = UnixListener::from_std(OwnedFd::from(socket).into())?;
        Ok(Self { listener, estate })
    }

    /// Wait for a successor and hand over to it. It returns once that one is in charge, with where that
    /// one passes on our agents' WebSockets. Cancelled, it has handed over or not; in either case this
    /// process is about to end.
    pub async fn hand_over(&self) -> PassedWebSockets {
        loop {
            let exchange = match self.listener.accept().await {
                // One at a time, and each with a limit for every answer.
                Ok((socket, _)) => self.exchange(socket).await,
                Err(err) => Err(err.into()),
            };
            match exchange {
                Ok(websockets) => return websockets,
                Err(err) => warn!(%err, "nothing was handed over, this edge serves on"),
            }
            // Somebody may ask again and again.
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn exchange(&self, socket: UnixStream) -> Result<PassedWebSockets, HandoverError> {
        let channel = Channel::new(socket)?;
        match channel.hear(ANSWER).await?.0 {
            Message::Request { version: VERSION } => {}
            Message::Request { version } => {
                let why = format!("it hands over in version {VERSION}, not {version}; restart it");
                channel.say(&Message::Refused { why }, &[]).await?;
                return Err(HandoverError::NotUnderstood);
            }
            _ => return Err(HandoverError::NotUnderstood),
        }
        let (successor, packets) = Successor::new()?;
        let (passed, websockets) = PassedWebSockets::new()?;
        if let Err(err) = self.offer(&channel, [packets, websockets]).await {
            let why = err.to_string();
            let _ = channel.say(&Message::Refused { why }, &[]).await;
            return Err(err);
        }
        match channel.hear(PREPARATION).await?.0 {
            Message::Ready => {}
            _ => return Err(HandoverError::NotUnderstood),
        }
        let HandoverState { udp, registry, .. } = &self.estate;
        registry.retire().await;
        if let Some(udp) = udp {
            udp.hand_over(successor);
        }
        let told = channel.say(&Message::Granted, &[]).await;
        if told.is_err() {
            if let Some(udp) = udp {
                udp.read();
            }
            registry.resume().await;
        }
        told.map(|()| passed)
    }

    /// Send everything; it stays in use here.
    async fn offer(&self, channel: &Channel, lines: [OwnedFd; 2]) -> Result<(), HandoverError> {
        let mut ids = vec![self.estate.ids];
        let mut descriptors = Vec::new();
        descriptors.extend(self.estate.sockets.iter().map(OwnedFd::as_fd));
        descriptors.extend(lines.iter().map(OwnedFd::as_fd));
        let mut before = Vec::new();
        for predecessor in self.estate.predecessors.alive().iter() {
            let (id, lines) = predecessor.handover_parts();
            ids.push(id);
            for line in lines {
                before.push(line.try_clone_to_owned()?);
            }
        }
        descriptors.extend(before.iter().map(OwnedFd::as_fd));
        if descriptors.len() > DESCRIPTORS {
            return Err(HandoverError::Refused(
                "too many former edges still drain".into(),
            ));
        }
        let sockets = self.estate.sockets.len() as u32;
        debug!(sockets, processes = ids.len(), "a successor asks");
        channel
            .say(&Message::Offer { sockets, ids }, &descriptors)
            .await
    }
}

/// Connect to the door of a running edge.
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None)?;
    socket.connect(&SockAddr::unix(path)?)?;
    socket.set_nonblocking(true)?;
    UnixStream::from_std(OwnedFd::from(socket).into())
}

/// How long a successor may take for what can fail: reading certificates, binding more addresses.
const PREPARATION: Duration = Duration::from_secs(10);

/// Successors that may wait at the door; there should be one.
const WAITING: i32 = 4;

/// Between one that failed and the next.
const PAUSE: Duration = Duration::from_millis(100);
