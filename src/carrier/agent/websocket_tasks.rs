//! The tasks of an agent's WebSocket: one that dials it, and one that runs it.

use std::{net::SocketAddr, panic, sync::Arc};

use bytes::BytesMut;
use tokio::{
    sync::mpsc,
    task::{AbortHandle, JoinSet},
};

use super::factory::{CarrierFactory, Upgraded};
use super::switch::EDGE;
use crate::carrier::receive_queue::ReceivedPackets;
use crate::carrier::tcp::connect::TcpConnectError;
use crate::carrier::websocket;
use crate::carrier::websocket::frames::Role;
use crate::carrier::websocket::{Ended, WebSocketLink};

/// The task that runs the WebSocket of a connection, and the one that dials a new one.
#[derive(Default)]
pub(crate) struct WebSocketTasks {
    tasks: JoinSet<WebSocketEvent>,
    dialling: Option<AbortHandle>,
    carrying: Option<(Arc<WebSocketLink>, AbortHandle)>,
}

/// The result of a dial, or the end of a WebSocket.
pub(crate) enum WebSocketEvent {
    Dialled(Result<Upgraded, TcpConnectError>),
    Ended(Arc<WebSocketLink>, Ended),
}

impl WebSocketTasks {
    /// Start moving packets over an upgraded connection. It replaces the previous WebSocket.
    pub(crate) fn carry(
        &mut self,
        upgraded: Upgraded,
        packet_sender: mpsc::Sender<ReceivedPackets>,
    ) -> Arc<WebSocketLink> {
        let link = Arc::new(WebSocketLink::new(Role::Client, EDGE, upgraded.peer));
        // The edge was dialled deliberately; the QUIC handshake finds out whether it speaks QUIC.
        link.quic_answered();
        let carried = link.clone();
        let task = self.tasks.spawn(async move {
            let ended = websocket::run(upgraded.io, BytesMut::new(), &carried, packet_sender).await;
            WebSocketEvent::Ended(carried, ended)
        });
        if let Some((_, previous)) = self.carrying.replace((link.clone(), task)) {
            previous.abort();
        }
        link
    }

    /// Start dialling. It replaces the previous dial.
    pub(crate) fn dial(&mut self, factory: &dyn CarrierFactory) {
        let dialling = factory.dial();
        let task = self
            .tasks
            .spawn(async move { WebSocketEvent::Dialled(dialling.await) });
        if let Some(previous) = self.dialling.replace(task) {
            previous.abort();
        }
    }

    /// Close the WebSocket, and stop dialling.
    pub(crate) fn close(&mut self) {
        if let Some(dialling) = self.dialling.take() {
            dialling.abort();
        }
        if let Some((_, carrying)) = self.carrying.take() {
            carrying.abort();
        }
    }

    /// Return the address that the WebSocket is connected to.
    pub(crate) fn peer(&self) -> Option<SocketAddr> {
        self.carrying.as_ref().map(|(link, _)| link.peer.address)
    }

    /// Wait until the WebSocket ends. Cancel safe.
    pub(crate) async fn ended(&mut self) -> Ended {
        loop {
            if let WebSocketEvent::Ended(_, ended) = self.next().await {
                return ended;
            }
        }
    }

    /// Wait for an event of the current WebSocket or dial; events of replaced ones are ignored.
    /// Cancel safe. Waits for ever while there are no tasks.
    pub(crate) async fn next(&mut self) -> WebSocketEvent {
        loop {
            match self.tasks.join_next().await {
                Some(Ok(WebSocketEvent::Dialled(outcome))) => {
                    self.dialling = None;
                    return WebSocketEvent::Dialled(outcome);
                }
                Some(Ok(WebSocketEvent::Ended(link, ended))) => {
                    let is_current = self
                        .carrying
                        .as_ref()
                        .is_some_and(|(l, _)| Arc::ptr_eq(l, &link));
                    if is_current {
                        self.carrying = None;
                        return WebSocketEvent::Ended(link, ended);
                    }
                }
                Some(Err(err)) if err.is_panic() => panic::resume_unwind(err.into_panic()),
                Some(Err(_)) => {}
                None => std::future::pending().await,
            }
        }
    }
}
