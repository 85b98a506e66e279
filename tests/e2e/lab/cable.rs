//! A way for TCP connections that can be pulled out and plugged in again.

use std::net::SocketAddr;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

/// Passes TCP on. Dropped, it is gone.
pub struct Cable {
    pub addr: SocketAddr,
    /// How many connections it has passed on.
    passed: watch::Receiver<usize>,
    pulled: watch::Sender<()>,
    task: JoinHandle<()>,
}

impl Cable {
    /// Lead to an edge.
    pub async fn to(edge: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addr = listener.local_addr().expect("bound");
        let (pulled, mut pulls) = watch::channel(());
        let (pass, passed) = watch::channel(0);
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => if let Ok((near, _)) = accepted {
                        connections.spawn(lead(near, edge));
                        pass.send_modify(|passed| *passed += 1);
                    },
                    Ok(()) = pulls.changed() => connections.shutdown().await,
                }
            }
        });
        Self {
            addr,
            passed,
            pulled,
            task,
        }
    }

    /// Cut every connection. New ones are passed on.
    pub fn pull(&self) {
        self.pulled.send_replace(());
    }

    /// Count the connections so far.
    pub fn connections(&self) -> usize {
        *self.passed.borrow()
    }
}

async fn lead(mut near: TcpStream, edge: SocketAddr) {
    // An edge that is not there at the moment is one that hangs up.
    if let Ok(mut far) = TcpStream::connect(edge).await {
        let _ = copy_bidirectional(&mut near, &mut far).await;
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        self.task.abort();
    }
}
