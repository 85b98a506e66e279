//! The tasks of an agent's WebSocket: the one that dials it and the one that runs it.

use std::{net::SocketAddr, panic, sync::Arc};

use bytes::BytesMut;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc,
    task::{AbortHandle, JoinSet},
};

use super::driver::CarrierFactory;
use super::switch::EDGE;
use crate::carrier::receive_queue::Arrival;
use crate::carrier::tcp::connect::TcpConnectError;
use crate::carrier::websocket;
use crate::carrier::websocket::frames::Role;
use crate::carrier::websocket::{Ended, Line, PeerInfo};

/// A byte stream that WebSocket messages can travel on.
pub(crate) trait Io: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// A connection that has been upgraded to a WebSocket, and the first hop on its way.
pub(crate) struct Upgraded {
    pub(crate) io: Box<dyn Io>,
    pub(crate) peer: PeerInfo,
}

/// The WebSocket of one connection: its task, and the one that dials it.
#[derive(Default)]
pub(crate) struct WebSocketTasks {
    tasks: JoinSet<LineEvent>,
    dialling: Option<AbortHandle>,
    carrying: Option<(Arc<Line>, AbortHandle)>,
}

/// What has become of a WebSocket or of the attempt to have one.
pub(crate) enum LineEvent {
    Dialled(Result<Upgraded, TcpConnectError>),
    Ended(Arc<Line>, Ended),
}

impl WebSocketTasks {
    /// Carry packets over an upgraded connection, in place of the one before.
    pub(crate) fn carry(
        &mut self,
        upgraded: Upgraded,
        arrivals: mpsc::Sender<Arrival>,
    ) -> Arc<Line> {
        let line = Arc::new(Line::new(Role::Client, EDGE, upgraded.peer));
        // The edge is who was dialled; whether it speaks QUIC is for the handshake to find out.
        line.answered();
        let carried = line.clone();
        let task = self.tasks.spawn(async move {
            let ended = websocket::run(upgraded.io, BytesMut::new(), &carried, arrivals).await;
            LineEvent::Ended(carried, ended)
        });
        if let Some((_, before)) = self.carrying.replace((line.clone(), task)) {
            before.abort();
        }
        line
    }

    /// Dial in place of the dial before.
    pub(crate) fn dial(&mut self, ways: &dyn CarrierFactory) {
        let dialling = ways.dial();
        let task = self
            .tasks
            .spawn(async move { LineEvent::Dialled(dialling.await) });
        if let Some(before) = self.dialling.replace(task) {
            before.abort();
        }
    }

    /// Close the WebSocket, or stop dialling it.
    pub(crate) fn close(&mut self) {
        if let Some(dialling) = self.dialling.take() {
            dialling.abort();
        }
        if let Some((_, carrying)) = self.carrying.take() {
            carrying.abort();
        }
    }

    /// Where the WebSocket is connected to.
    pub(crate) fn peer(&self) -> Option<SocketAddr> {
        self.carrying.as_ref().map(|(line, _)| line.peer.peer)
    }

    /// Wait until the WebSocket ends. Cancel safe.
    pub(crate) async fn ended(&mut self) -> Ended {
        loop {
            if let LineEvent::Ended(_, ended) = self.next().await {
                return ended;
            }
        }
    }

    /// Wait for an event of the present WebSocket or dial; those of former ones are passed over.
    /// Cancel safe. Pends for ever while there is nothing to wait for.
    pub(crate) async fn next(&mut self) -> LineEvent {
        loop {
            match self.tasks.join_next().await {
                Some(Ok(LineEvent::Dialled(outcome))) => {
                    self.dialling = None;
                    return LineEvent::Dialled(outcome);
                }
                Some(Ok(LineEvent::Ended(line, ended))) => {
                    let present = self
                        .carrying
                        .as_ref()
                        .is_some_and(|(l, _)| Arc::ptr_eq(l, &line));
                    if present {
                        self.carrying = None;
                        return LineEvent::Ended(line, ended);
                    }
                }
                Some(Err(err)) if err.is_panic() => panic::resume_unwind(err.into_panic()),
                Some(Err(_)) => {}
                None => std::future::pending().await,
            }
        }
    }
}
