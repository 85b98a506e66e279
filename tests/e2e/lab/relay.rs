//! A network between agents and an edge that can be cut, in one direction or in both.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Passes UDP on, for as long as it is told to.
pub struct Relay {
    pub addr: SocketAddr,
    up: watch::Sender<bool>,
    down: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Relay {
    /// Stand in front of an edge.
    pub async fn to(edge: SocketAddr) -> Self {
        let agents = Arc::new(UdpSocket::bind("127.0.0.1:0").await.expect("a port"));
        let addr = agents.local_addr().expect("bound");
        let (up, passes_up) = watch::channel(true);
        let (down, passes_down) = watch::channel(true);
        let task = tokio::spawn(async move {
            let mut ways = HashMap::<SocketAddr, Arc<UdpSocket>>::new();
            let mut packet = vec![0; 65_536];
            while let Ok((length, agent)) = agents.recv_from(&mut packet).await {
                let way = match ways.entry(agent) {
                    Entry::Occupied(entry) => entry.into_mut(),
                    Entry::Vacant(entry) => {
                        let way = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
                        way.connect(edge).await.expect("an address");
                        let way = Arc::new(way);
                        let passes = passes_down.clone();
                        // It ends with the test.
                        tokio::spawn(back(way.clone(), agents.clone(), agent, passes));
                        entry.insert(way)
                    }
                };
                let passes = *passes_up.borrow();
                if passes {
                    let _ = way.send(&packet[..length]).await;
                }
            }
        });
        Self {
            addr,
            up,
            down,
            task,
        }
    }

    /// Pass packets towards the edge, or lose them.
    pub fn towards_edge(&self, passes: bool) {
        self.up.send_replace(passes);
    }

    /// Pass packets towards agents, or lose them.
    pub fn towards_agents(&self, passes: bool) {
        self.down.send_replace(passes);
    }
}

async fn back(
    way: Arc<UdpSocket>,
    agents: Arc<UdpSocket>,
    agent: SocketAddr,
    passes: watch::Receiver<bool>,
) {
    let mut packet = vec![0; 65_536];
    loop {
        // An edge that is not there at the moment is an error that passes.
        let received = way.recv(&mut packet).await;
        let passes = *passes.borrow();
        if let (Ok(length), true) = (received, passes) {
            let _ = agents.send_to(&packet[..length], agent).await;
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}
