//! The running edge's side of a handover (hot restart).

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
use super::message::{Channel, HandoverError, MAX_DESCRIPTORS, Message, REPLY_TIMEOUT, VERSION};
use crate::carrier::handover::passed_websocket::PassedWebSockets;
use crate::carrier::handover::predecessors::Predecessors;
use crate::carrier::handover::shared_udp::SharedUdp;
use crate::carrier::handover::successor::Successor;
use crate::edge::names::registry::Registry;
use crate::state::StateDir;

/// The Unix socket on which a successor asks to take over to take over, and what it is handed.
pub struct HandoverListener {
    listener: UnixListener,
    state: HandoverState,
}

/// Everything that a successor is handed.
pub struct HandoverState {
    /// The listening sockets, including the one for UDP.
    pub sockets: Vec<OwnedFd>,
    /// The UDP socket, if agents may connect over UDP.
    pub udp: Option<Arc<SharedUdp>>,
    /// The edges before this one that still drain.
    pub predecessors: Predecessors,
    /// Key that marks the QUIC connection ids of this process.
    pub ids: u64,
    /// The registry of names, which the successor restores from the lease file.
    pub registry: Registry,
}

impl HandoverListener {
    /// Listen for a successor of a newly started edge. Returns `None` if another edge runs with the
    /// same state directory, whose socket is left alone.
    ///
    /// # Errors
    /// Returns the system's error if the socket cannot be created.
    pub fn open(dir: &StateDir, state: HandoverState) -> io::Result<Option<Self>> {
        if connect(&dir.path(SOCKET)).is_ok() {
            return Ok(None);
        }
        Self::replace(dir, state).map(Some)
    }

    /// Listen for a successor in place of the predecessor, whose socket is replaced.
    ///
    /// # Errors
    /// Returns the system's error if the socket cannot be created.
    pub fn replace(dir: &StateDir, state: HandoverState) -> io::Result<Self> {
        let path = dir.path(SOCKET);
        let temporary = dir.path(&format!(".{SOCKET}.{}", std::process::id()));
        let _ = fs::remove_file(&temporary);
        let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None)?;
        socket.set_nonblocking(true)?;
        socket.bind(&SockAddr::unix(&temporary)?)?;
        fs::set_permissions(&temporary, fs::Permissions::from_mode(0o600))?;
        socket.listen(LISTEN_BACKLOG)?;
        fs::rename(&temporary, path)?;
        let listener = UnixListener::from_std(OwnedFd::from(socket).into())?;
        Ok(Self { listener, state })
    }

    /// Wait for a successor and hand over to it. Returns once that process is in charge, with the
    /// channel on which it passes on our agents' WebSockets. If cancelled, the handover has either
    /// happened or not; in both cases this process is about to end.
    pub async fn hand_over(&self) -> PassedWebSockets {
        loop {
            let handed_over = match self.listener.accept().await {
                // One successor at a time, with a timeout for every reply.
                Ok((socket, _)) => self.negotiate(socket).await,
                Err(err) => Err(err.into()),
            };
            match handed_over {
                Ok(websockets) => return websockets,
                Err(err) => warn!(%err, "nothing was handed over, this edge serves on"),
            }
            // A failing successor may try again and again.
            tokio::time::sleep(RETRY_INTERVAL).await;
        }
    }

    /// Exchange the messages of one handover.
    async fn negotiate(&self, socket: UnixStream) -> Result<PassedWebSockets, HandoverError> {
        let channel = Channel::new(socket)?;
        match channel.receive(REPLY_TIMEOUT).await?.0 {
            Message::Request { version: VERSION } => {}
            Message::Request { version } => {
                let reason = format!(
                    "it supports handover version {VERSION}, not {version}; restart it instead"
                );
                channel.send(&Message::Refused { reason }, &[]).await?;
                return Err(HandoverError::NotUnderstood);
            }
            _ => return Err(HandoverError::NotUnderstood),
        }
        let (successor, packets) = Successor::new()?;
        let (passed, websockets) = PassedWebSockets::new()?;
        if let Err(err) = self.offer(&channel, [packets, websockets]).await {
            let reason = err.to_string();
            let _ = channel.send(&Message::Refused { reason }, &[]).await;
            return Err(err);
        }
        match channel.receive(PREPARATION_TIMEOUT).await?.0 {
            Message::Ready => {}
            _ => return Err(HandoverError::NotUnderstood),
        }
        let HandoverState { udp, registry, .. } = &self.state;
        registry.retire().await;
        if let Some(udp) = udp {
            udp.hand_over(successor);
        }
        let sent = channel.send(&Message::Granted, &[]).await;
        if sent.is_err() {
            if let Some(udp) = udp {
                udp.read();
            }
            registry.resume().await;
        }
        sent.map(|()| passed)
    }

    /// Send the sockets to the successor; they stay in use here.
    async fn offer(&self, channel: &Channel, pipes: [OwnedFd; 2]) -> Result<(), HandoverError> {
        let mut ids = vec![self.state.ids];
        let mut descriptors = Vec::new();
        descriptors.extend(self.state.sockets.iter().map(OwnedFd::as_fd));
        descriptors.extend(pipes.iter().map(OwnedFd::as_fd));
        let mut inherited = Vec::new();
        for predecessor in self.state.predecessors.alive().iter() {
            let (id, pipes) = predecessor.handover_parts();
            ids.push(id);
            for pipe in pipes {
                inherited.push(pipe.try_clone_to_owned()?);
            }
        }
        descriptors.extend(inherited.iter().map(OwnedFd::as_fd));
        if descriptors.len() > MAX_DESCRIPTORS {
            return Err(HandoverError::Refused(
                "too many earlier edges are still draining".into(),
            ));
        }
        let sockets = self.state.sockets.len() as u32;
        debug!(
            sockets,
            processes = ids.len(),
            "a successor asks to take over"
        );
        channel
            .send(&Message::Offer { sockets, ids }, &descriptors)
            .await
    }
}

/// Connect to the handover socket of a running edge.
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None)?;
    socket.connect(&SockAddr::unix(path)?)?;
    socket.set_nonblocking(true)?;
    UnixStream::from_std(OwnedFd::from(socket).into())
}

/// Timeout of what can fail at the successor: reading certificates, binding further addresses.
const PREPARATION_TIMEOUT: Duration = Duration::from_secs(10);

/// Successors that may wait to be accepted; there should be one.
const LISTEN_BACKLOG: i32 = 4;

/// Pause between a failed handover and the next.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);
