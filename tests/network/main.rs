//! What happens to visitors when the agent's network changes: real programs and real packets, in
//! network namespaces. Each case is run once here; `scripts/bench network` runs them many times.
//!
//! Needs root, and `ip`, `ss`, `sysctl`, `nft` and `conntrack`, which `scripts/test` installs.

#![cfg(target_os = "linux")]

mod cases;
mod congestion;
mod dead_address;
mod ground;
#[path = "../e2e/lab/mod.rs"]
#[allow(
    dead_code,
    unused_imports,
    reason = "the end-to-end tests use the rest"
)]
mod lab;
mod link;
mod space;
mod table;
mod traffic;
mod upstream;
mod wall;

use std::time::Duration;

use cases::{Case, FAILED, Length};
use ground::Ground;
use wall::{Block, Cut};

/// Run a case and hold it to its limits.
///
/// Nothing may ever be lost. A time may be exceeded now and then, by whatever else the machine does:
/// the limits are those of the promises, which leave little room for that.
fn hold(case: &Case) {
    if !space::may_be_made() {
        return;
    }
    let mut exceeded = String::new();
    for _ in 0..ATTEMPTS {
        let figures = (case.run)(Length::Short);
        let mut over = figures.iter().filter(|(name, figure)| {
            let mut limits = case.limits.iter();
            limits.any(|(limited, most)| limited == name && figure > most)
        });
        let Some((name, figure)) = over.next() else {
            return;
        };
        exceeded = format!("{name} is {figure}: {figures:?}");
        assert_ne!(*name, FAILED, "{exceeded}");
        eprintln!("{exceeded}, once more");
    }
    panic!("{exceeded}, and so {ATTEMPTS} times");
}

/// Runs in which a time may be exceeded before it counts.
const ATTEMPTS: usize = 3;

/// Round trip times.
const PATH: Duration = Duration::from_millis(40);
const SHORT_PATH: Duration = Duration::from_millis(20);

macro_rules! cases {
    ($($test:ident: $name:literal, $round_trip:ident, |$ground:ident, $length:pat_param| $run:expr, $limits:expr;)*) => {
        /// All of them.
        const CASES: &[Case] = &[$(Case {
            name: $name,
            run: |$length| Ground::run($round_trip, async move |$ground: &mut Ground| $run.await),
            limits: &$limits,
        }),*];

        $(#[test]
        fn $test() {
            hold(CASES.iter().find(|case| case.name == $name).expect("one of them"));
        })*
    };
}

cases! {
    where_udp_is_blocked_the_first_request_is_answered_within_a_second:
        "udp blocked from the start", PATH,
        |ground, _| cases::blocked_from_the_start(ground), [("answered", 1000.0)];
    a_download_moves_to_the_websocket_when_udp_is_dropped_and_back_when_it_heals:
        "udp dropped in a download", PATH,
        |ground, _| cases::blocked_and_healed(ground, Block::Both),
        [("stall", 1500.0), ("back", 30_000.0), (FAILED, 0.0)];
    a_download_moves_to_the_websocket_when_udp_is_dropped_towards_the_edge:
        "udp dropped towards the edge", PATH,
        |ground, _| cases::blocked_and_healed(ground, Block::ToEdge),
        [("stall", 1500.0), ("back", 30_000.0), (FAILED, 0.0)];
    a_download_moves_to_the_websocket_when_udp_is_dropped_towards_the_agent:
        "udp dropped towards the agent", PATH,
        |ground, _| cases::blocked_and_healed(ground, Block::ToAgent),
        [("stall", 1500.0), ("back", 30_000.0), (FAILED, 0.0)];
    a_download_moves_to_the_websocket_when_udp_is_rejected:
        "udp rejected in a download", PATH,
        |ground, _| cases::blocked_and_healed(ground, Block::Rejected),
        [("stall", 1500.0), ("back", 30_000.0), (FAILED, 0.0)];
    a_websocket_that_is_reset_is_dialled_again_at_once:
        "websocket reset", PATH,
        |ground, _| cases::websocket_cut(ground, Cut::Reset), [("stall", 1500.0), (FAILED, 0.0)];
    a_websocket_that_is_dropped_is_dialled_again:
        "websocket dropped", PATH,
        |ground, _| cases::websocket_cut(ground, Cut::Dropped), [("stall", 2500.0), (FAILED, 0.0)];
    a_websocket_that_is_reset_gives_way_to_udp:
        "websocket reset, udp passes", PATH,
        |ground, _| cases::websocket_cut_while_udp_passes(ground, Cut::Reset),
        [("stall", 1500.0), (FAILED, 0.0)];
    a_websocket_that_is_dropped_gives_way_to_udp:
        "websocket dropped, udp passes", PATH,
        |ground, _| cases::websocket_cut_while_udp_passes(ground, Cut::Dropped),
        [("stall", 3000.0), (FAILED, 0.0)];
    a_flapping_network_fails_no_request:
        "udp flapping", PATH,
        |ground, length| cases::flapping(ground, length), [(FAILED, 0.0)];
    a_download_hardly_halts_when_the_agents_address_changes:
        "another address", SHORT_PATH,
        |ground, _| cases::another_address(ground), [("stall", 500.0), (FAILED, 0.0)];
    a_websocket_is_dialled_again_at_once_from_another_address:
        "another address, websocket", SHORT_PATH,
        |ground, _| cases::another_address_over_a_websocket(ground),
        [("stall", 1500.0), (FAILED, 0.0)];
    a_nat_that_rebinds_fails_no_request:
        "nat rebinding", SHORT_PATH,
        |ground, length| cases::nat_rebinding(ground, length), [(FAILED, 0.0)];
    an_interface_that_comes_up_with_another_address_loses_nothing:
        "interface down for 10 s", SHORT_PATH,
        |ground, _| cases::interface_down(ground), [("answered", 2000.0), (FAILED, 0.0)];
    an_agent_that_wakes_is_usable_within_two_seconds:
        "wake after a minute", SHORT_PATH,
        |ground, length| cases::sleep_and_wake(ground, length), [("answered", 2000.0)];
    a_download_goes_on_after_a_nap:
        "wake after 6 s", SHORT_PATH,
        |ground, _| cases::nap(ground), [("went on", 2000.0)];
    an_edge_answers_from_the_address_that_was_asked:
        "second address of the edge", SHORT_PATH,
        |ground, _| cases::second_address_of_the_edge(ground), [("answered", 1000.0)];
    small_requests_are_quick_beside_a_download_over_udp:
        "beside a download, udp", PATH,
        |ground, _| cases::beside_a_download(ground, "quic"), [(FAILED, 0.0)];
    small_requests_are_quick_beside_a_download_over_a_websocket:
        "beside a download, websocket", PATH,
        |ground, _| cases::beside_a_download(ground, "websocket"), [(FAILED, 0.0)];
}
