//! TCP connections of the simulated network.

use std::{sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf, duplex, split},
    sync::mpsc,
    time::{Instant, sleep_until},
};

use super::network::Network;

/// Bytes that a TCP connection holds in either direction, besides [`IN_FLIGHT`] chunks of
/// [`CHUNK`].
const BUFFER: usize = 16 * 1024;
const CHUNK: usize = 4 * 1024;
const IN_FLIGHT: usize = 32;

/// Return the two ends of a connection, and the network between them, which has to be polled.
pub(crate) fn connection(
    network: Arc<Network>,
) -> (DuplexStream, DuplexStream, impl Future<Output = ()> + Send) {
    let (agent, near) = duplex(BUFFER);
    let (edge, far) = duplex(BUFFER);
    let mut cut = network.tcp.subscribe();
    let cuts = cut.borrow_and_update().cuts;
    let between = async move {
        let (near_in, near_out) = split(near);
        let (far_in, far_out) = split(far);
        tokio::select! {
            _ = cut.wait_for(|tcp| tcp.cuts != cuts) => {}
            _ = async { tokio::join!(
                carry(&network, near_in, far_out),
                carry(&network, far_in, near_out),
            ) } => {}
        }
    };
    (agent, edge, between)
}

async fn carry(
    network: &Network,
    mut from: ReadHalf<DuplexStream>,
    mut to: WriteHalf<DuplexStream>,
) {
    let (sender, mut receiver) = mpsc::channel::<(Instant, Vec<u8>)>(IN_FLIGHT);
    let delay: Duration = network.conditions().delay;
    let take = async move {
        let mut buffer = vec![0; CHUNK];
        while let Ok(n @ 1..) = from.read(&mut buffer).await {
            let chunk = (Instant::now() + delay, buffer[..n].to_vec());
            if sender.send(chunk).await.is_err() {
                return;
            }
        }
    };
    let give = async move {
        let mut state = network.tcp.subscribe();
        let deaths = state.borrow().deaths;
        while let Some((due, chunk)) = receiver.recv().await {
            sleep_until(due).await;
            let Ok(tcp) = state.wait_for(|tcp| tcp.moves).await.map(|tcp| *tcp) else {
                return;
            };
            if tcp.deaths == deaths && to.write_all(&chunk).await.is_err() {
                return;
            }
        }
        if state.borrow().deaths != deaths {
            return;
        }
        let _ = to.shutdown().await;
    };
    tokio::join!(take, give);
}
