//! Network faults that a session survives.

use std::time::Duration;

use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use super::lab::Lab;
use super::network::{Conditions, Network};
use crate::carrier::{Carrier, Transport};

const ROUND_TRIP: Duration = Duration::from_millis(40);

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn a_conversation_over_udp_is_exact() {
    let lab = Lab::start(Network::new(1), Transport::Auto).await;

    lab.converse(1, 100_000, 300_000).await.unwrap();

    assert_eq!(lab.carrier.borrow().carrier, Carrier::Udp);
    lab.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_conversation_over_a_websocket_is_exact() {
    let lab = Lab::start(Network::new(1), Transport::Websocket).await;

    lab.converse(1, 100_000, 300_000).await.unwrap();

    assert_eq!(lab.carrier.borrow().carrier, Carrier::WebSocket);
    lab.end().await;
}

#[tokio::test(start_paused = true)]
async fn where_udp_is_blocked_an_agent_starts_on_a_websocket_within_a_second() {
    let network = Network::new(1);
    network.udp(false);
    network.change(|conditions| conditions.delay = Duration::from_millis(20));
    let started = Instant::now();

    let lab = Lab::start(network, Transport::Auto).await;
    lab.converse(1, 100, 100).await.unwrap();

    assert!(started.elapsed() < SECOND, "{:?}", started.elapsed());
    assert_eq!(lab.carrier.borrow().carrier, Carrier::WebSocket);
    lab.end().await;
}

#[tokio::test(start_paused = true)]
async fn where_nothing_passes_both_attempts_report_errors() {
    let network = Network::new(1);
    network.udp(false);
    network.change(|conditions| conditions.dialling = false);

    let failed = Lab::try_start(network, Transport::Auto)
        .await
        .err()
        .unwrap();

    let failed: Vec<_> = failed.iter().map(ToString::to_string).collect();
    assert_eq!(failed.len(), 2, "{failed:?}");
    assert!(
        failed
            .iter()
            .any(|text| text.starts_with("websocket: no answer from edge"))
    );
    assert!(
        failed
            .iter()
            .any(|text| text.starts_with("udp to 192.0.2.1:443: no answer"))
    );
}

#[tokio::test(start_paused = true)]
async fn a_lost_short_message_arrives_with_its_duplicate() {
    let network = Network::new(7);
    network.change(|conditions| conditions.delay = ROUND_TRIP / 2);
    let lab = Lab::start(network.clone(), Transport::Quic).await;
    for duplicator in &lab.duplicators {
        duplicator.resend_tail();
    }
    lab.converse(1, 4_000, 4_000).await.unwrap();
    let passes: [fn(&mut Conditions) -> &mut bool; 2] = [
        |conditions| &mut conditions.to_agent,
        |conditions| &mut conditions.to_edge,
    ];
    // The agent receives it half a round trip later.
    let turns = [Duration::ZERO, ROUND_TRIP / 2];
    for ((duplicator, passes), turn) in lab.duplicators.iter().zip(passes).zip(turns) {
        let started = Instant::now();
        network.change(|conditions| *passes(conditions) = false);
        let conversation = tokio::spawn(lab.converse(2, 4_000, 4_000));
        sleep(turn + ROUND_TRIP / 8).await;
        network.change(|conditions| *passes(conditions) = true);

        duplicator.resend_tail();

        conversation.await.unwrap().unwrap();
        let elapsed = started.elapsed();
        assert!(elapsed < ROUND_TRIP * 5 / 4, "{elapsed:?}");
    }
    lab.end().await;
}

#[tokio::test(start_paused = true)]
async fn nothing_is_duplicated_to_an_address_that_is_not_validated_yet() {
    let network = Network::new(7);
    network.change(|conditions| conditions.delay = ROUND_TRIP / 2);
    let lab = Lab::start(network.clone(), Transport::Quic).await;
    let [duplicator, _] = &lab.duplicators;
    duplicator.resend_tail();
    lab.converse(1, 4_000, 4_000).await.unwrap();
    let again = || {
        let before = network.packets_to_agent();
        duplicator.resend_tail();
        network.packets_to_agent() > before
    };
    assert!(again());

    network.rebind_nat();
    lab.converse(2, 4_000, 4_000).await.unwrap();
    assert!(!again(), "somebody else may be there");
    assert!(!again(), "for a while");

    sleep(SECOND * 3).await;
    assert!(!again(), "nothing has been kept yet");
    lab.converse(3, 4_000, 4_000).await.unwrap();
    assert!(again());
    lab.end().await;
}

/// Measure how long a transfer stalls after `change`: until its receiver has 50 KB more than what
/// was in flight.
async fn stall(up: usize, down: usize, change: impl FnOnce(&Network)) -> (Lab, Duration) {
    let network = Network::new(7);
    network.change(|conditions| conditions.delay = Duration::from_millis(20));
    let lab = Lab::start(network.clone(), Transport::Auto).await;
    let transfer = tokio::spawn(lab.converse(1, up, down));
    let receiver = if down > up {
        lab.edge.clone()
    } else {
        lab.agent.clone()
    };
    sleep(SECOND / 2).await;

    change(&network);
    let changed = Instant::now();
    sleep(Duration::from_millis(50)).await;
    let arrived = receiver.stats().udp_rx.bytes;
    while receiver.stats().udp_rx.bytes < arrived + 50_000 {
        assert!(changed.elapsed() < 20 * SECOND, "it never went on");
        sleep(Duration::from_millis(5)).await;
    }
    let stalled = changed.elapsed();
    transfer.await.unwrap().unwrap();
    (lab, stalled)
}

#[tokio::test(start_paused = true)]
async fn a_download_goes_on_over_a_websocket_when_udp_dies() {
    let (lab, stalled) = stall(0, 8 << 20, |network| network.udp(false)).await;

    assert!(stalled < SECOND * 3 / 2, "{stalled:?}");
    assert_eq!(lab.carrier.borrow().carrier, Carrier::WebSocket);
    lab.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_upload_goes_on_over_a_websocket_when_udp_dies() {
    let (lab, stalled) = stall(8 << 20, 0, |network| network.udp(false)).await;

    assert!(stalled < SECOND * 3 / 2, "{stalled:?}");
    lab.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_download_goes_on_when_udp_dies_on_the_way_to_the_agent_alone() {
    let (lab, stalled) = stall(0, 8 << 20, |network| {
        network.change(|conditions| conditions.to_agent = false)
    })
    .await;

    assert!(stalled < SECOND * 2, "{stalled:?}");
    lab.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_download_goes_on_when_udp_dies_on_the_way_to_the_edge_alone() {
    let (lab, stalled) = stall(0, 8 << 20, |network| {
        network.change(|conditions| conditions.to_edge = false)
    })
    .await;

    assert!(stalled < SECOND * 3 / 2, "{stalled:?}");
    assert_eq!(lab.carrier.borrow().carrier, Carrier::WebSocket);
    lab.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_upload_goes_on_when_udp_dies_on_the_way_to_the_edge_alone() {
    let (lab, stalled) = stall(8 << 20, 0, |network| {
        network.change(|conditions| conditions.to_edge = false)
    })
    .await;

    assert!(stalled < SECOND * 2, "{stalled:?}");
    assert_eq!(lab.carrier.borrow().carrier, Carrier::WebSocket);
    lab.end().await;
}

#[tokio::test(start_paused = true)]
async fn packets_from_the_edge_do_not_prove_that_it_receives_ours() {
    let network = Network::new(7);
    network.change(|conditions| conditions.delay = Duration::from_millis(20));
    let mut lab = Lab::start(network.clone(), Transport::Auto).await;
    let mut conversations = JoinSet::new();
    conversations.spawn(lab.converse(1, 0, 8 << 20));
    sleep(SECOND / 2).await;

    network.change(|conditions| conditions.to_edge = false);
    let changed = Instant::now();
    // New visitors make the edge send all the time.
    for stream in 2..42 {
        conversations.spawn(lab.converse(stream, 200, 2_000));
        sleep(SECOND / 20).await;
    }
    lab.moved_to(Carrier::WebSocket).await;

    let moved = changed.elapsed();
    assert!(moved <= 2 * SECOND, "{moved:?}");
    while let Some(ended) = conversations.join_next().await {
        ended.unwrap().unwrap();
    }
    lab.end().await;
}

#[tokio::test(start_paused = true)]
async fn transfers_go_on_at_once_when_the_agent_has_another_address() {
    for (up, down) in [(32 << 20, 0), (0, 32 << 20)] {
        let (lab, stalled) = stall(up, down, Network::rebind_nat).await;

        assert!(stalled < SECOND / 4, "{up} up, {down} down: {stalled:?}");
        assert_eq!(lab.carrier.borrow().carrier, Carrier::Udp);
        lab.end().await;
    }
}

#[tokio::test(start_paused = true)]
async fn requests_survive_a_nat_that_rebinds_every_five_seconds() {
    let network = Network::new(5);
    let lab = Lab::start(network.clone(), Transport::Auto).await;
    let mut requests = JoinSet::new();
    requests.spawn(lab.converse(1, 100, 16 << 20));
    for tick in 0..20 * 60_u64 {
        if tick % 100 == 99 {
            network.rebind_nat();
        }
        requests.spawn(lab.converse(2 + tick, 200, 2_000));
        sleep(SECOND / 20).await;
    }

    while let Some(ended) = requests.join_next().await {
        ended.unwrap().unwrap();
    }
    assert_eq!(lab.carrier.borrow().carrier, Carrier::Udp);
    lab.end().await;
}

#[tokio::test(start_paused = true)]
async fn udp_is_used_again_within_half_a_minute_after_it_heals() {
    let network = Network::new(3);
    let mut lab = Lab::start(network.clone(), Transport::Auto).await;
    for _ in 0..3 {
        let transfer = tokio::spawn(lab.converse(1, 100, 2 << 20));
        network.udp(false);
        lab.moved_to(Carrier::WebSocket).await;
        sleep(30 * SECOND).await;
        transfer.await.unwrap().unwrap();

        network.udp(true);
        let healed = Instant::now();
        lab.moved_to(Carrier::Udp).await;

        assert!(healed.elapsed() < 30 * SECOND, "{:?}", healed.elapsed());
        lab.converse(2, 100_000, 100_000).await.unwrap();
    }
    lab.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_lost_websocket_is_replaced_at_once() {
    let network = Network::new(3);
    network.udp(false);
    let lab = Lab::start(network.clone(), Transport::Auto).await;
    let transfer = tokio::spawn(lab.converse(1, 100_000, 16 << 20));
    sleep(SECOND / 2).await;
    assert!(!transfer.is_finished());

    network.cut_tcp();
    let cut = Instant::now();
    lab.converse(2, 100, 100).await.unwrap();

    assert!(cut.elapsed() < SECOND, "{:?}", cut.elapsed());
    transfer.await.unwrap().unwrap();
    lab.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_websocket_that_dies_silently_is_replaced() {
    let network = Network::new(3);
    network.udp(false);
    let lab = Lab::start(network.clone(), Transport::Auto).await;
    let transfer = tokio::spawn(lab.converse(1, 100_000, 16 << 20));
    sleep(SECOND / 2).await;
    assert!(!transfer.is_finished());

    network.kill_tcp();
    let died = Instant::now();
    lab.converse(2, 100, 100).await.unwrap();

    assert!(died.elapsed() < 2 * SECOND, "{:?}", died.elapsed());
    transfer.await.unwrap().unwrap();
    lab.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_dead_websocket_does_not_block_traffic_that_udp_could_carry() {
    let network = Network::new(3);
    network.udp(false);
    let mut lab = Lab::start(network.clone(), Transport::Auto).await;
    let up = tokio::spawn(lab.converse(1, 6 << 20, 100));
    let down = tokio::spawn(lab.converse(2, 100, 6 << 20));
    sleep(SECOND / 2).await;
    assert!(!up.is_finished() && !down.is_finished());

    network.tcp_moves(false);
    network.udp(true);
    let changed = Instant::now();
    lab.moved_to(Carrier::Udp).await;
    lab.converse(3, 100, 100).await.unwrap();

    assert!(changed.elapsed() < 3 * SECOND, "{:?}", changed.elapsed());
    up.await.unwrap().unwrap();
    down.await.unwrap().unwrap();
    lab.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_stops_reading_its_websocket_is_disconnected() {
    let network = Network::new(3);
    let lab = Lab::start(network.clone(), Transport::Websocket).await;
    let up = tokio::spawn(lab.converse(1, 6 << 20, 100));
    sleep(SECOND / 4).await;
    assert!(!up.is_finished());
    network.change(|conditions| conditions.dialling = false);

    network.tcp_moves(false);
    let stopped = Instant::now();
    lab.edge.closed().await;
    while lab.edge_socket.websockets() > 0 {
        sleep(SECOND).await;
    }

    assert!(up.await.unwrap().is_err());
    assert!(stopped.elapsed() < 40 * SECOND, "{:?}", stopped.elapsed());
}

#[tokio::test(start_paused = true)]
async fn without_another_carrier_udp_resumes_soon_after_an_outage_of_ten_seconds() {
    let network = Network::new(3);
    network.change(|conditions| conditions.delay = Duration::from_millis(20));
    let lab = Lab::start(network.clone(), Transport::Quic).await;
    let up = tokio::spawn(lab.converse(1, 6 << 20, 100));
    let down = tokio::spawn(lab.converse(2, 100, 6 << 20));
    sleep(SECOND / 2).await;
    network.udp(false);
    sleep(10 * SECOND).await;

    network.udp(true);
    let healed = Instant::now();
    lab.converse(3, 100, 100).await.unwrap();

    assert!(healed.elapsed() < SECOND, "{:?}", healed.elapsed());
    up.await.unwrap().unwrap();
    down.await.unwrap().unwrap();
    lab.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_stays_where_it_is_and_does_not_probe() {
    let network = Network::new(3);
    let lab = Lab::start(network.clone(), Transport::Auto).await;
    lab.converse(1, 1 << 20, 1 << 20).await.unwrap();
    sleep(2 * SECOND).await;
    let before = network.probes();

    sleep(60 * SECOND).await;

    assert_eq!(lab.carrier.borrow().carrier, Carrier::Udp);
    assert_eq!(network.probes(), before);
    lab.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_flapping_network_fails_no_request() {
    let network = Network::new(11);
    network.change(|conditions| conditions.delay = Duration::from_millis(20));
    let lab = Lab::start(network.clone(), Transport::Auto).await;
    let mut requests = JoinSet::new();
    requests.spawn(lab.converse(1, 100, 16 << 20));
    for tick in 0..20 * 60_u64 {
        match tick % (7 * 20) {
            0 => network.udp(true),
            100 => network.udp(false),
            _ => {}
        }
        requests.spawn(lab.converse(2 + tick, 200, 2_000));
        sleep(SECOND / 20).await;
    }
    network.udp(true);

    while let Some(ended) = requests.join_next().await {
        ended.unwrap().unwrap();
    }
    lab.end().await;
}
