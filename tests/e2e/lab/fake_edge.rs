//! An edge in the test's own hands: for what no edge of ours would say.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method};
use qtunnel::proto::{
    self, AgentMessage, BodyLength, EdgeMessage, Fields, HEAD_LIMIT, Hello, HttpVersion, Limits,
    MIN_WINDOW, RequestHead, Scheme, StreamHead, TunnelGrant, Welcome,
};
use qtunnel::{AgentConfig, Pin, ServerAddr, Trust, Upstream};
use quinn::{Connection, RecvStream, SendStream};
use tokio::sync::mpsc;

use super::peer::{ALPN, Stranger};
use super::{Lab, way, within};

/// A QUIC server that hands each connection to the test.
pub struct FakeEdge {
    stranger: Stranger,
    connections: mpsc::UnboundedReceiver<Connection>,
}

impl FakeEdge {
    pub fn start() -> Self {
        let (accepted, connections) = mpsc::unbounded_channel();
        let stranger = Stranger::start(&ALPN, move |connection| {
            let accepted = accepted.clone();
            async move {
                let _ = accepted.send(connection);
            }
        });
        Self {
            stranger,
            connections,
        }
    }

    /// Where agents reach it.
    pub fn addr(&self) -> SocketAddr {
        way::from_agents(self.stranger.addr)
    }

    pub fn pin(&self) -> Pin {
        self.stranger.pin
    }

    /// The configuration of an agent that believes this to be its edge.
    pub fn agent_config(&self, name: &str, upstream: impl Into<Upstream>) -> AgentConfig {
        let addr = self.addr();
        AgentConfig {
            server: ServerAddr {
                host: addr.ip().to_string(),
                port: addr.port(),
            },
            trust: Trust::Pins(vec![self.pin()]),
            ..Lab::config(name, upstream)
        }
    }

    /// Wait for an agent, and for its hello.
    pub async fn greeted(&mut self) -> Greeted {
        let connection = within("an agent", self.connections.recv()).await;
        let connection = connection.expect("the server is running");
        let (send, mut receive) = within("the control stream", connection.accept_bi())
            .await
            .expect("an agent opens one");
        let AgentMessage::Hello(hello) = hear(&mut receive).await else {
            panic!("no hello");
        };
        Greeted {
            connection,
            send,
            receive,
            hello,
        }
    }

    /// Wait for an agent, and welcome it.
    pub async fn welcomed(&mut self) -> Greeted {
        let mut agent = self.greeted().await;
        let welcome = welcome(&agent.hello);
        agent.say(&EdgeMessage::Welcome(welcome)).await;
        agent
    }
}

/// An agent that has said hello.
pub struct Greeted {
    pub connection: Connection,
    pub send: SendStream,
    /// Kept, as an edge does.
    #[allow(dead_code)]
    pub receive: RecvStream,
    pub hello: Hello,
}

impl Greeted {
    /// Send a message.
    pub async fn say(&mut self, message: &EdgeMessage) {
        let bytes = proto::encode(message, proto::CONTROL_LIMIT).expect("a short message");
        self.raw(bytes).await;
    }

    /// Send bytes on the control stream, as far as the agent takes them.
    pub async fn raw(&mut self, bytes: Bytes) {
        let _ = within("room on the control stream", self.send.write_chunk(bytes)).await;
    }

    /// Send a head on a new stream.
    pub async fn ask(&self, head: RequestHead) -> (SendStream, RecvStream) {
        let (mut send, receive) = within("a stream", self.connection.open_bi())
            .await
            .expect("a live session");
        let head = proto::encode(&StreamHead::Http(head), HEAD_LIMIT).expect("a short head");
        send.write_chunk(head).await.expect("a live stream");
        (send, receive)
    }

    /// Wait until the agent closes the connection, and return its code and reason.
    pub async fn closed(&self) -> (u64, String) {
        close(&self.connection).await
    }
}

/// Wait until the other end closes a connection, and return its code and reason.
pub async fn close(connection: &Connection) -> (u64, String) {
    match within("the other end's close", connection.closed()).await {
        quinn::ConnectionError::ApplicationClosed(close) => (
            close.error_code.into_inner(),
            String::from_utf8_lossy(&close.reason).into_owned(),
        ),
        other => panic!("{other:?}"),
    }
}

/// The answer that an honest edge would give.
pub fn welcome(hello: &Hello) -> Welcome {
    let grants = hello.tunnels.iter().map(|asked| TunnelGrant {
        tunnel: asked.tunnel,
        name: asked.name.clone(),
        urls: vec![format!("https://{}.example.com", asked.name).into()],
    });
    Welcome {
        session: 1,
        software: "a test".into(),
        tunnels: grants.collect(),
        limits: Limits {
            tunnels: 1,
            streams: 1,
        },
    }
}

/// A request that an honest edge would send.
pub fn request(
    method: Method,
    target: &str,
    fields: &[(&'static str, &'static str)],
) -> RequestHead {
    let mut map = HeaderMap::new();
    for (name, value) in fields {
        map.append(*name, HeaderValue::from_static(value));
    }
    RequestHead {
        tunnel: 0,
        visitor: ([192, 0, 2, 1], 443).into(),
        scheme: Scheme::Https,
        version: HttpVersion::Http11,
        method,
        target: target.into(),
        upgrade: None,
        body: BodyLength::Empty,
        window: MIN_WINDOW as u32,
        fields: Fields(map),
    }
}

/// Put other bytes into a message in place of a text that it has: of the same length, so that it stays a message.
pub fn forge(message: &EdgeMessage, text: &str, with: &[u8]) -> Bytes {
    let bytes = proto::encode(message, proto::CONTROL_LIMIT).expect("a short message");
    super::forge(bytes, text, with)
}

async fn hear(receive: &mut RecvStream) -> AgentMessage {
    let mut splitter = proto::Splitter::default();
    within("the agent's message", async {
        loop {
            if let Some(message) = splitter.next(proto::CONTROL_LIMIT).expect("a message") {
                return proto::decode(&message).expect("a message");
            }
            let chunk = receive.read_chunk(1024, true).await.expect("a live stream");
            splitter.push(&chunk.expect("more").bytes);
        }
    })
    .await
}
