//! An edge, an agent, and conversations between them that check every byte.

use std::{
    error::Error,
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::future::BoxFuture;
use quinn::{AsyncUdpSocket, Connection, Endpoint, EndpointConfig};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{sleep, timeout},
};

use super::network::{EDGE, Network};
use super::random::pattern;
use super::udp::MemoryUdp;
use super::{certificate, pipe};
use crate::carrier::agent::dial_error::AttemptError;
use crate::carrier::agent::driver::{CarrierState, NetworkWatch};
use crate::carrier::agent::factory::CarrierFactory;
use crate::carrier::agent::factory::Upgraded;
use crate::carrier::agent::network_watch::NetworkChange;
use crate::carrier::agent::race::Race;
use crate::carrier::congestion::CongestionOwner;
use crate::carrier::duplicate::duplicator::Duplicator;
use crate::carrier::edge::socket::{EdgeSocket, edge_endpoint_over};
use crate::carrier::tcp::connect::{Peer, TcpConnectError};
use crate::carrier::{Carrier, PathMemory, PeerInfo, Transport};
use crate::net::path_kind::PathKind;

/// Address from which the agent's TCP connections appear to come.
const PEER: ([u8; 4], u16) = ([198, 51, 100, 99], 4000);

/// Timeout of a conversation under the worst conditions: everything recovers within seconds.
const CONVERSATION_TIMEOUT: Duration = Duration::from_secs(120);

pub(crate) struct Lab {
    pub(crate) network: Arc<Network>,
    pub(crate) edge_socket: EdgeSocket,
    pub(crate) carrier: watch::Receiver<CarrierState>,
    pub(crate) changes: mpsc::Sender<NetworkChange>,
    pub(crate) edge: Connection,
    pub(crate) agent: Connection,
    /// Duplicators of the edge and of the agent.
    pub(crate) duplicators: [Duplicator; 2],
    edge_endpoint: Endpoint,
    agent_endpoint: Endpoint,
    tasks: JoinSet<()>,
    websockets: Arc<Mutex<JoinSet<()>>>,
}

struct MemoryCarrierFactory {
    network: Arc<Network>,
    edge: EdgeSocket,
    tasks: Arc<Mutex<JoinSet<()>>>,
}

impl CarrierFactory for MemoryCarrierFactory {
    fn bind(&self) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        Ok(MemoryUdp::open(&self.network, None))
    }

    fn dial(&self) -> BoxFuture<'static, Result<Upgraded, TcpConnectError>> {
        let (network, edge, tasks) = (self.network.clone(), self.edge.clone(), self.tasks.clone());
        Box::pin(async move {
            let conditions = network.conditions();
            // TCP, TLS and the upgrade take a round trip each.
            sleep(conditions.delay * 6).await;
            if !conditions.dialling || !network.tcp.borrow().moves {
                let peer = Peer::Edge("edge.test".into());
                return Err(TcpConnectError::TimedOut { peer });
            }
            let (near, far, between) = pipe::connection(network);
            let mut tasks = tasks.lock().unwrap();
            let peer = PeerInfo {
                address: PEER.into(),
                path_kind: PathKind::Network,
                congestion: CongestionOwner::Quic,
            };
            if let Ok(carrying) = edge.accept(far, peer) {
                edge.all_sessions_started();
                tasks.spawn(async move {
                    carrying.await;
                });
            }
            tasks.spawn(between);
            Ok(Upgraded {
                io: Box::new(near),
                peer,
            })
        })
    }
}

impl Lab {
    /// Start an edge, and an agent that has reached it.
    pub(crate) async fn start(network: Arc<Network>, transport: Transport) -> Self {
        Self::try_start(network, transport).await.unwrap()
    }

    pub(crate) async fn try_start(
        network: Arc<Network>,
        transport: Transport,
    ) -> Result<Self, Vec<AttemptError>> {
        let certificate = certificate();
        let udp = MemoryUdp::open(&network, Some(EDGE));
        let (edge_endpoint, edge_socket) =
            edge_endpoint_over(Some(udp), EndpointConfig::default(), certificate.server, 10)
                .unwrap();
        let websockets = Arc::new(Mutex::new(JoinSet::new()));
        let ways = Arc::new(MemoryCarrierFactory {
            network: network.clone(),
            edge: edge_socket.clone(),
            tasks: websockets.clone(),
        });
        let race = Race {
            quic: certificate.client,
            path_kind: PathKind::Network,
            memory: PathMemory::default(),
            endpoint: EndpointConfig::default(),
            server_name: "edge.test".into(),
            edge: vec![EDGE],
            factory: ways,
        };
        let accepting = tokio::spawn({
            let endpoint = edge_endpoint.clone();
            async move {
                loop {
                    // Of the handshakes in a race, the one that succeeds is the agent's.
                    let incoming = endpoint.accept().await.unwrap();
                    if let Ok(connection) = incoming.await {
                        return connection;
                    }
                }
            }
        });
        let mut failed = Vec::new();
        let Some(established) = race.run(transport, &mut failed).await else {
            accepting.abort();
            return Err(failed);
        };
        let agent = established.connection.clone();
        let of_agent = Duplicator::for_agent(&agent, &established.switch);
        let agent_endpoint = established.endpoint.clone();
        let (changes, changed) = mpsc::channel(8);
        let (driver, carrier) = race.drive(
            established,
            transport,
            NetworkWatch {
                changes: changed,
                watcher: None,
            },
        );
        let mut tasks = JoinSet::new();
        tasks.spawn(driver.run());
        tasks.spawn(serve(agent.clone()));
        let edge: Connection = accepting.await.unwrap();
        // The edge does so for an agent that is authenticated.
        edge.set_receive_window(WINDOW.into());
        let duplicators = [Duplicator::for_edge(&edge, &edge_socket), of_agent];
        Ok(Self {
            network,
            edge_socket,
            carrier,
            changes,
            edge,
            agent,
            duplicators,
            edge_endpoint,
            agent_endpoint,
            tasks,
            websockets,
        })
    }

    /// Send `up` bytes to the agent, receive `down` bytes from it, and check them all.
    pub(crate) fn converse(&self, stream: u64, up: usize, down: usize) -> Conversation {
        converse(self.edge.clone(), stream, up, down)
    }

    /// Wait until the agent sends over this carrier.
    pub(crate) async fn moved_to(&mut self, carrier: Carrier) {
        let moved = self.carrier.wait_for(|state| state.carrier == carrier);
        timeout(CONVERSATION_TIMEOUT, moved)
            .await
            .expect("moves in time")
            .unwrap();
    }

    /// Close the connection and check that nothing is left of it.
    pub(crate) async fn end(mut self) {
        self.agent.close(0_u32.into(), b"done");
        timeout(CONVERSATION_TIMEOUT, async {
            while self.tasks.join_next().await.is_some() {}
            self.agent_endpoint.wait_idle().await;
            self.edge_endpoint.wait_idle().await;
        })
        .await
        .expect("everything ends");
        self.network.tcp_moves(true);
        let mut websockets = std::mem::take(&mut *self.websockets.lock().unwrap());
        timeout(CONVERSATION_TIMEOUT, async {
            while websockets.join_next().await.is_some() {}
        })
        .await
        .expect("every websocket ends");
        assert_eq!(self.edge_socket.websockets(), 0);
    }
}

/// A conversation in progress.
pub(crate) type Conversation = BoxFuture<'static, Result<(), String>>;

/// Act as the edge: send `up` bytes to the agent, receive `down` bytes from it, and check them all.
pub(crate) fn converse(edge: Connection, stream: u64, up: usize, down: usize) -> Conversation {
    let conversation = async move {
        let (mut send, mut recv) = edge.open_bi().await?;
        let asking = async {
            for number in [stream, up as u64, down as u64] {
                send.write_all(&number.to_be_bytes()).await?;
            }
            send.write_all(&pattern(stream, up)).await?;
            send.finish()?;
            Ok::<_, Box<dyn Error + Send + Sync>>(())
        };
        let listening = recv.read_to_end(down + 1);
        let (asked, heard) = tokio::join!(asking, listening);
        asked?;
        match heard? == pattern(!stream, down) {
            true => Ok::<_, Box<dyn Error + Send + Sync>>(()),
            false => Err("other bytes came back".into()),
        }
    };
    Box::pin(async move {
        match timeout(CONVERSATION_TIMEOUT, conversation).await {
            Ok(ended) => ended.map_err(|err| format!("stream {stream}: {err}")),
            Err(_) => Err(format!("stream {stream} never ended")),
        }
    })
}

/// Act as the agent: answer each stream with the bytes it asks for, or reset it if it is not exact.
pub(crate) async fn serve(connection: Connection) {
    let mut conversations = JoinSet::new();
    while let Ok((mut send, mut recv)) = connection.accept_bi().await {
        conversations.spawn(async move {
            let mut head = [0; 24];
            recv.read_exact(&mut head).await.ok()?;
            let [stream, up, down] = [0, 8, 16].map(|at| {
                let number = head[at..at + 8].try_into().expect("eight bytes");
                u64::from_be_bytes(number)
            });
            let answering = async { send.write_all(&pattern(!stream, down as usize)).await.ok() };
            let listening = async { recv.read_to_end(up as usize + 1).await.ok() };
            let (answered, heard) = tokio::join!(answering, listening);
            answered?;
            match heard? == pattern(stream, up as usize) {
                true => send.finish().ok(),
                false => send.reset(1_u32.into()).ok(),
            }
        });
    }
}

/// Bytes that an agent may send ahead on a connection.
const WINDOW: u32 = 4 << 20;
