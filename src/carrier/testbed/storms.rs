//! Weather that changes all the time, by a seed: whatever it does, every stream is exact.

use std::time::Duration;

use tokio::{task::JoinSet, time::sleep};

use super::lab::Lab;
use super::network::Network;
use super::noise::Dice;
use crate::carrier::Transport;
use crate::carrier::agent::network_watch::NetworkChange;

const SECOND: Duration = Duration::from_secs(1);

/// One run of weather that changes every few hundred milliseconds, by the seed.
async fn storm(seed: u64) {
    let network = Network::new(seed);
    let mut dice = Dice::new(seed ^ 0x5707);
    network.change(|weather| {
        weather.delay = Duration::from_millis(1 + dice.below(60));
        weather.jitter = Duration::from_millis(dice.below(15));
    });
    let lab = Lab::start(network.clone(), Transport::Auto).await;
    let mut requests = JoinSet::new();
    // Enough that something is on the way whatever happens when.
    let mut stream = 1;
    requests.spawn(lab.converse(stream, 1 << 20, 1 << 20));
    for _ in 0..8 + dice.below(8) {
        for _ in 0..dice.below(4) {
            stream += 1;
            let up = dice.size();
            let down = dice.size();
            requests.spawn(lab.converse(stream, up, down));
        }
        // As if messages had ended, whatever is sent.
        for duplicator in &lab.repeaters {
            duplicator.message_written(0);
            duplicator.resend_tail();
        }
        match dice.below(13) {
            0 | 1 => network.udp(false),
            2 => network.change(|weather| weather.to_edge = false),
            3 => network.change(|weather| weather.to_agent = false),
            4 => network.change(|weather| weather.loss = dice.below(30) as f64 / 100.0),
            5 => network.cut_tcp(),
            6 => network.tcp_moves(false),
            7 => network.rebind_nat(),
            8 => network.change(|weather| weather.dialling = !weather.dialling),
            9 => {
                let now = [10, 0, 0, dice.below(250) as u8].into();
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
            11 => network.forget_tcp(),
            _ => {}
        }
        sleep(Duration::from_millis(50 + dice.below(1_200))).await;
        // Never everything at once for longer than a connection survives.
        match dice.below(3) {
            0 => network.udp(true),
            1 => network.tcp_moves(true),
            _ => {}
        }
    }
    network.udp(true);
    network.tcp_moves(true);
    network.change(|weather| (weather.loss, weather.dialling) = (0.0, true));

    while let Some(ended) = requests.join_next().await {
        if let Err(err) = ended.unwrap() {
            panic!("seed {seed}: {err}");
        }
    }
    lab.end().await;
}

fn storms(seeds: std::ops::Range<u64>) {
    for seed in seeds {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(storm(seed));
    }
}

#[test]
fn streams_are_exact_in_storms_0_to_99() {
    storms(0..100);
}

#[test]
fn streams_are_exact_in_storms_100_to_199() {
    storms(100..200);
}

#[test]
fn streams_are_exact_in_storms_200_to_299() {
    storms(200..300);
}
