//! Randomised fault injection: whatever the network does, every stream is exact.

use std::time::Duration;

use tokio::{task::JoinSet, time::sleep};

use super::lab::Lab;
use super::network::Network;
use super::random::Random;
use crate::carrier::Transport;
use crate::carrier::agent::network_watch::NetworkChange;

const SECOND: Duration = Duration::from_secs(1);

/// Run one session under conditions that change every few hundred milliseconds.
async fn random_fault_run(seed: u64) {
    let network = Network::new(seed);
    let mut random = Random::new(seed ^ 0x5707);
    network.change(|conditions| {
        conditions.delay = Duration::from_millis(1 + random.below(60));
        conditions.jitter = Duration::from_millis(random.below(15));
    });
    let lab = Lab::start(network.clone(), Transport::Auto).await;
    let mut requests = JoinSet::new();
    // Enough traffic that something is in flight whatever happens when.
    let mut stream = 1;
    requests.spawn(lab.converse(stream, 1 << 20, 1 << 20));
    for _ in 0..8 + random.below(8) {
        for _ in 0..random.below(4) {
            stream += 1;
            let up = random.size();
            let down = random.size();
            requests.spawn(lab.converse(stream, up, down));
        }
        // As if messages had ended, whatever is being sent.
        for duplicator in &lab.duplicators {
            duplicator.message_written(0);
            duplicator.resend_tail();
        }
        match random.below(13) {
            0 | 1 => network.udp(false),
            2 => network.change(|conditions| conditions.to_edge = false),
            3 => network.change(|conditions| conditions.to_agent = false),
            4 => network.change(|conditions| conditions.loss = random.below(30) as f64 / 100.0),
            5 => network.cut_tcp(),
            6 => network.tcp_moves(false),
            7 => network.rebind_nat(),
            8 => network.change(|conditions| conditions.dialling = !conditions.dialling),
            9 => {
                let now = [10, 0, 0, random.below(250) as u8].into();
                lab.changes
                    .send(NetworkChange::Address { now })
                    .await
                    .unwrap();
            }
            10 => {
                let after = SECOND * 60;
                lab.changes
                    .send(NetworkChange::Woke { after })
                    .await
                    .unwrap();
            }
            11 => network.kill_tcp(),
            _ => {}
        }
        sleep(Duration::from_millis(50 + random.below(1_200))).await;
        // Not everything fails at once for longer than a connection survives.
        match random.below(3) {
            0 => network.udp(true),
            1 => network.tcp_moves(true),
            _ => {}
        }
    }
    network.udp(true);
    network.tcp_moves(true);
    network.change(|conditions| (conditions.loss, conditions.dialling) = (0.0, true));

    while let Some(ended) = requests.join_next().await {
        if let Err(err) = ended.unwrap() {
            panic!("seed {seed}: {err}");
        }
    }
    lab.end().await;
}

fn random_faults(seeds: std::ops::Range<u64>) {
    for seed in seeds {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(random_fault_run(seed));
    }
}

#[test]
fn streams_are_exact_under_random_faults_0_to_99() {
    random_faults(0..100);
}

#[test]
fn streams_are_exact_under_random_faults_100_to_199() {
    random_faults(100..200);
}

#[test]
fn streams_are_exact_under_random_faults_200_to_299() {
    random_faults(200..300);
}
