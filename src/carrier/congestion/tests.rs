//! Tests of the controller's promises, on links in virtual time: no real clock affects the results.

use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::congestion::{Controller, ControllerFactory, CubicConfig};

use super::link_model::{FlowId, Link, LinkModel, Loss, Rng};
use super::{Config, CongestionOwner, PathMemory, RateModel};

const MIB: u64 = 1 << 20;

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

fn ours() -> Arc<Config> {
    Arc::new(Config::default())
}

/// 50 Mbit/s, a round trip of 40 ms, a queue of 100 ms.
fn broadband() -> Link {
    Link::new(50.0, ms(20), ms(100))
}

/// Download `bytes` and return the share of the link's rate that it got, handshake and headers
/// included.
fn downloaded(model: &mut LinkModel, link: &Link, bytes: u64) -> f64 {
    let flow = model.add(ours(), bytes);
    let took = model.run_until_received(flow, bytes, secs(100));
    let took = took.expect("a download ends");
    bytes as f64 / link.capacity(Duration::ZERO, took)
}

#[test]
fn a_download_fills_a_link_that_loses_packets() {
    for loss in [
        Loss::Independent(0.0),
        Loss::Independent(0.03),
        Loss::Independent(0.05),
        Loss::Bursts {
            share: 0.03,
            length: 5.0,
        },
    ] {
        let link = Link {
            loss,
            ..broadband()
        };

        let share = downloaded(&mut LinkModel::symmetric(&link, 1), &link, 20 * MIB);

        assert!(share > 0.78, "{:.0} % of the link's rate", share * 100.0);
    }
}

#[test]
fn a_download_after_small_answers_starts_as_fast_as_on_a_new_connection() {
    let link = broadband();
    let mut model = LinkModel::symmetric(&link, 1);
    let flow = model.add(ours(), 10 << 10);
    for _ in 0..9 {
        model.run(ms(200));
        model.offer(flow, 10 << 10);
    }
    model.run(ms(200));

    model.offer(flow, 2 * MIB);
    let took = model.run_until_received(flow, 100 * 1024 + 2 * MIB, secs(10));

    let took = took.expect("a download ends");
    // 38 KiB, twice that, and so on: the path is full in the fourth round trip.
    let full = 4 * ms(40) + ms(2 * MIB * 8 / 50_000);
    assert!(took < full, "{took:?}");
}

/// Download 20 MiB, then send responses of 10 KiB until the seventh second, each `pause` after the
/// previous one has arrived. Return the total of bytes.
fn download_and_small_answers(model: &mut LinkModel, flow: FlowId, pause: Duration) -> u64 {
    let mut bytes = 20 * MIB;
    model.offer(flow, bytes);
    let took = model.run_until_received(flow, bytes, secs(10));
    took.expect("a download ends");
    while model.elapsed() < secs(7) {
        model.run(pause);
        model.offer(flow, 10 << 10);
        bytes += 10 << 10;
        let took = model.run_until_received(flow, bytes, secs(1));
        took.expect("answers arrive");
    }
    bytes
}

#[test]
fn small_answers_do_not_make_it_forget_how_fast_the_path_is() {
    for pause in [ms(20), ms(60)] {
        let mut model = LinkModel::symmetric(&broadband(), 1);
        let flow = model.add(ours(), 0);
        let bytes = download_and_small_answers(&mut model, flow, pause);

        model.offer(flow, 20 * (10 << 10));
        let took = model.run_until_received(flow, bytes + 20 * (10 << 10), secs(10));

        // Two flights, of which the link needs 34 ms for what is in them.
        let took = took.expect("answers arrive");
        assert!(took < 2 * ms(40) + ms(20), "{took:?}, {pause:?} apart");
    }
}

#[test]
fn a_path_that_has_become_slow_while_little_was_sent_is_not_flooded() {
    for pause in [ms(20), ms(60)] {
        let mut link = Link::new(50.0, ms(20), secs(5));
        link.rate = vec![(secs(0), 50e6), (secs(5), 2e6)];
        let mut model = LinkModel::new(link, broadband(), 1);
        let flow = model.add(ours(), 0);
        let bytes = download_and_small_answers(&mut model, flow, pause);
        let from = model.elapsed();

        model.offer(flow, 2 * MIB);
        let took = model.run_until_received(flow, bytes + 2 * MIB, secs(20));

        took.expect("a download ends");
        // What filled the path was 250 KB, which would be a second by itself.
        let wait = model.queue_over_time(1.0, from);
        assert!(wait < ms(800), "packets wait {wait:?}, {pause:?} apart");
    }
}

#[test]
fn a_connection_on_a_path_that_is_known_does_not_start_from_nothing() {
    let link = Link::new(100.0, ms(100), ms(100));
    let remembering = Arc::new(Config {
        memory: Some(PathMemory::default()),
        ..Config::default()
    });
    let download = |bytes| {
        let mut model = LinkModel::symmetric(&link, 1);
        let flow = model.add(remembering.clone(), bytes);
        let took = model.run_until_received(flow, bytes, secs(100));
        took.expect("a download ends")
    };
    let first = download(4 * MIB);
    download(50 * MIB);

    let later = download(4 * MIB);

    assert!(later + ms(200) < first, "{later:?} after {first:?}");
}

#[test]
fn a_path_that_has_become_slow_is_found_out() {
    let remembering = Arc::new(Config {
        memory: Some(PathMemory::default()),
        ..Config::default()
    });
    let slow = Link::new(5.0, ms(20), ms(100));
    for (link, bytes) in [(broadband(), 20 * MIB), (slow.clone(), 2 * MIB)] {
        let mut model = LinkModel::symmetric(&link, 1);
        let flow = model.add(remembering.clone(), bytes);
        let took = model.run_until_received(flow, bytes, secs(100));

        let share = bytes as f64 / link.capacity(Duration::ZERO, took.expect("a download ends"));
        assert!(share > 0.8, "{:.0} % of the link's rate", share * 100.0);
    }
}

#[test]
fn a_download_keeps_the_queue_short() {
    let link = broadband();
    let mut model = LinkModel::symmetric(&link, 1);

    downloaded(&mut model, &link, 50 * MIB);

    let wait = model.queue_over_time(0.99, secs(1));
    assert!(wait < ms(25), "packets wait {wait:?}");
    assert_eq!(model.overflowed(), 0);
}

#[test]
fn an_upload_on_a_slow_line_leaves_its_long_queue_empty() {
    let up = Link::new(1.0, ms(20), secs(1));
    let down = Link::new(10.0, ms(20), ms(100));
    let mut model = LinkModel::new(up.clone(), down, 1);

    let share = downloaded(&mut model, &up, 3 * MIB);

    assert!(share > 0.85, "{:.0} % of the link's rate", share * 100.0);
    let wait = model.queue_over_time(0.95, secs(2));
    assert!(wait < ms(40), "packets wait {wait:?}");
}

#[test]
fn no_line_is_too_slow_or_too_lossy_for_a_short_queue() {
    let rates = [0.5, 0.7, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 7.0, 10.0];
    for (loss, mbit) in [0.0, 0.03]
        .into_iter()
        .flat_map(|loss| rates.map(|mbit| (loss, mbit)))
    {
        let up = Link {
            loss: Loss::Independent(loss),
            ..Link::new(mbit, ms(20), secs(1))
        };
        let down = Link::new(10.0, ms(20), ms(100));
        let mut model = LinkModel::new(up, down, 1);

        let flow = model.add(ours(), 1000 * MIB);
        model.run(secs(22));

        let line = format!("{mbit} Mbit/s, {loss} lost");
        let share = model.goodput(flow, secs(2), secs(22)) * 8.0 / (mbit * 1e6);
        assert!(share > 0.85, "{line}: {share:.2} of it used");
        let wait = model.queue_over_time(0.99, secs(2));
        let packet = Duration::from_secs_f64(1480.0 * 8.0 / (mbit * 1e6));
        assert!(
            wait < 5 * packet + ms(12),
            "{line}: packets wait for {wait:?}"
        );
    }
}

#[test]
fn round_trips_that_vary_are_not_taken_for_a_queue() {
    for (mbit, jitter, bunch) in [(1.0, 20, 0), (3.0, 20, 0), (10.0, 20, 0), (50.0, 0, 10)] {
        let line = |mbit| Link {
            jitter: ms(jitter),
            bunch: ms(bunch),
            ..Link::new(mbit, ms(20), secs(1))
        };
        let mut model = LinkModel::new(line(mbit), line(20.0), 1);

        let flow = model.add(ours(), 1000 * MIB);
        model.run(secs(22));

        let share = model.goodput(flow, secs(2), secs(22)) * 8.0 / (mbit * 1e6);
        assert!(share > 0.75, "{share:.2} of {mbit} Mbit/s used");
        let wait = model.queue_over_time(0.99, secs(2));
        assert!(wait < ms(100), "packets wait for {wait:?} at {mbit} Mbit/s");
    }
}

#[test]
fn answers_do_not_wait_because_their_acknowledgements_do() {
    let up = Link::new(1.0, ms(20), secs(1));
    let down = Link::new(10.0, ms(20), ms(100));
    let mut model = LinkModel::new(down, up, 1);
    let answers = model.add(ours(), 0);
    model.add_backward(ours(), 100 * MIB);
    model.run(secs(2));

    let mut slowest = Duration::ZERO;
    for times in 1..=60 {
        model.offer(answers, 5 << 10);
        let took = model.run_until_received(answers, times * (5 << 10), secs(10));
        let took = took.expect("answers arrive");
        slowest = slowest.max(took);
        model.run(ms(100).saturating_sub(took));
    }

    // One way takes 20 ms, and a packet a millisecond.
    assert!(slowest < ms(40), "five answers took {slowest:?}");
}

#[test]
fn a_long_fat_path_is_filled() {
    // Start-up may overshoot by a queue of half a round trip at most.
    let link = Link::new(100.0, ms(100), ms(100));

    let share = downloaded(&mut LinkModel::symmetric(&link, 1), &link, 100 * MIB);

    assert!(share > 0.8, "{:.0} % of the link's rate", share * 100.0);
}

#[test]
fn a_rate_that_changes_every_second_is_followed() {
    let mut rng = Rng(1);
    let mut link = Link::new(50.0, ms(20), ms(200));
    link.rate = (0..120)
        .map(|second| (secs(second), (2.0 + 48.0 * rng.unit()) * 1e6))
        .collect();
    let mut model = LinkModel::new(link.clone(), broadband(), 1);

    let share = downloaded(&mut model, &link, 100 * MIB);

    assert!(share > 0.75, "{:.0} % of the link's rate", share * 100.0);
    let wait = model.queue_over_packets(0.95, secs(1));
    assert!(wait < ms(60), "packets wait {wait:?}");
}

#[test]
fn round_trips_of_microseconds_do_not_starve_the_window() {
    let mut link = Link::new(4000.0, Duration::from_micros(20), ms(20));
    link.jitter = Duration::from_micros(100);
    link.bunch = Duration::from_micros(300);

    let share = downloaded(&mut LinkModel::symmetric(&link, 1), &link, 200 * MIB);

    assert!(share > 0.8, "{:.0} % of the link's rate", share * 100.0);
}

#[test]
fn two_connections_share_a_link_equally() {
    let mut model = LinkModel::symmetric(&broadband(), 1);
    let first = model.add(ours(), u64::MAX);
    model.run(secs(5));
    let second = model.add(ours(), u64::MAX);
    model.run(secs(5));
    let from = model.elapsed();
    model.run(secs(10));

    let rates = [first, second].map(|flow| model.goodput(flow, from, model.elapsed()));

    let jain = (rates[0] + rates[1]).powi(2) / (2.0 * (rates[0].powi(2) + rates[1].powi(2)));
    assert!(jain > 0.9, "{rates:?} bytes/s");
}

#[test]
fn beside_a_cubic_download_both_get_a_fair_part() {
    let mut model = LinkModel::symmetric(&broadband(), 1);
    let cubic = model.add(Arc::new(CubicConfig::default()), u64::MAX);
    model.run(secs(5));
    let ours = model.add(ours(), u64::MAX);
    let from = model.elapsed();
    model.run(secs(25));

    let rates = [cubic, ours].map(|flow| model.goodput(flow, from, model.elapsed()) * 8e-6);

    assert!(
        rates.iter().all(|&mbit| mbit > 25.0 / 4.0),
        "{rates:?} Mbit/s"
    );
}

#[test]
fn a_quarter_lost_slows_it_down() {
    let link = Link {
        loss: Loss::Independent(0.25),
        ..broadband()
    };

    let share = downloaded(&mut LinkModel::symmetric(&link, 1), &link, 5 * MIB);

    assert!(share < 0.4, "{:.0} % of the link's rate", share * 100.0);
}

#[test]
fn the_same_seed_gives_the_same_result() {
    let link = Link {
        loss: Loss::Independent(0.03),
        ..broadband()
    };
    let download = || downloaded(&mut LinkModel::symmetric(&link, 7), &link, 5 * MIB);

    assert_eq!(download().to_bits(), download().to_bits());
}

/// Return a controller that has left its path to TCP, after 16 MiB were delivered in 40 ms.
fn tcp_controlled(config: &Arc<Config>, start: Instant) -> RateModel {
    let mut model = RateModel::new(config, 1_200, start);
    assert_eq!(model.window(), config.initial_window);
    config.congestion_owner.set(CongestionOwner::Tcp);
    deliver(&mut model, start, 16 * MIB);
    deliver(&mut model, start + ms(50), 1_200);
    model
}

#[test]
fn the_window_is_open_while_tcp_controls_congestion_and_small_on_a_path_that_is_new() {
    let start = Instant::now();
    let config = ours();
    let initial = config.initial_window;

    let mut model = tcp_controlled(&config, start);

    assert!(model.window() > 16 * MIB);
    config.congestion_owner.set(CongestionOwner::Quic);
    deliver(&mut model, start + secs(1), 1_200);
    assert!(model.window() < 4 * initial);

    config.congestion_owner.set(CongestionOwner::Tcp);
    let elsewhere = config.build(start + secs(2), 1_200);
    assert_eq!(elsewhere.window(), initial);
}

#[test]
fn the_window_closes_when_acknowledgements_are_overdue_under_tcp() {
    let start = Instant::now();
    let config = ours();
    let mut model = tcp_controlled(&config, start);

    let later = start + secs(60);
    model.on_sent(later, 1_200, 0);
    assert!(model.window() > 16 * MIB, "nothing was on its way before");
    model.on_sent(later + secs(1), 1_200, 0);

    assert!(model.window() <= config.initial_window);
    deliver(&mut model, later + secs(2), 1_200);
    assert!(model.window() > 16 * MIB);
}

#[test]
fn a_slow_path_is_never_left_to_tcp_so_that_no_queue_builds_in_front_of_it() {
    let slow = Link::new(1.0, ms(20), secs(1));
    let config = ours();
    config.congestion_owner.set(CongestionOwner::Tcp);
    let mut model = LinkModel::symmetric(&slow, 1);

    model.add(config, u64::MAX);
    model.run(secs(10));

    let queue = model.queue_over_time(0.95, secs(2));
    assert!(queue < ms(100), "{queue:?}");
}

#[test]
fn a_path_that_has_become_slow_is_taken_back_from_tcp() {
    let start = Instant::now();
    let mut model = tcp_controlled(&ours(), start);
    let mut now = start + ms(100);

    for _ in 0..50 {
        deliver(&mut model, now, 12_000);
        now += ms(50);
    }

    assert!(model.window() < MIB, "{}", model.window());
}

/// Send bytes, and acknowledge them 40 ms later.
fn deliver(model: &mut RateModel, sent: Instant, bytes: u64) {
    let acked = sent + ms(40);
    model.on_sent(sent, bytes, 0);
    model.delivery.on_ack(acked, sent, bytes);
    model.acked_bytes = bytes;
    (model.acked_at, model.acks_overdue) = (acked, false);
    model.on_end_acks(acked, 0, false, None);
}
