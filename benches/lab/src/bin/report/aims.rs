//! What qtunnel aims for, as ratios within one run, and whether it got there.

use crate::{
    aim::{
        Aim,
        Bound::{AtLeast, AtMost},
    },
    samples::Bench,
    scale,
};

/// The aims of one bench as a Markdown table; nothing if qtunnel was not measured.
pub fn section(bench: &Bench) -> String {
    let aims = match bench.name {
        "clean" => clean(bench),
        "scale" => scale::aims(bench),
        "wan" | "burst" => bench
            .scenes()
            .iter()
            .flat_map(|scene| lossy(bench, scene))
            .collect(),
        name => single(bench, name),
    };
    let lines: String = aims.iter().filter_map(Aim::line).collect();
    if lines.is_empty() {
        return lines;
    }
    format!("**Aims**\n\n| | found | must | goal |\n| --- | --- | --- | --- |\n{lines}\n")
}

pub const OURS: &str = "qtunnel";
pub const OURS_OVER_WEBSOCKET: &str = "qtunnel-websocket";

/// The peers that encrypt what they carry and are tunnels by trade; `ssh -R` is shown beside them.
const ENCRYPTED: [&str; 5] = [
    "rathole-noise",
    "rathole-tls",
    "rusnel",
    "rusnel-bbr",
    "frp",
];

/// The peers whose agent's connection is TCP.
const OVER_TCP: [&str; 6] = [
    "bore",
    "rathole",
    "rathole-noise",
    "rathole-tls",
    "ssh",
    "frp",
];

fn clean(bench: &Bench) -> Vec<Aim> {
    let found = |peer: &str, row: &str, metric: &str| bench.median("clean", peer, row, metric);
    let mut aims = Vec::new();
    for (what, row, metric, encrypted, plain) in [
        (
            "requests/s, 32 kept connections",
            "keep-32",
            "rps",
            1.0,
            0.9,
        ),
        (
            "requests/s, 256 kept connections",
            "keep-256",
            "rps",
            1.2,
            1.0,
        ),
        (
            "requests/s, 32, a new connection each",
            "new-32",
            "rps",
            2.0,
            1.5,
        ),
        ("one download", "download", "mb_per_s", 1.1, 0.8),
        ("one upload", "upload", "mb_per_s", 1.1, 0.8),
    ] {
        let ours = found(OURS, row, metric);
        let (name, best) = best(&ENCRYPTED, |peer| found(peer, row, metric));
        aims.push(
            Aim::new(
                format!("{what} ÷ {name}, the best encrypted peer"),
                ratio(ours, best),
            )
            .must(AtLeast(encrypted)),
        );
        let rathole = found("rathole", row, metric);
        aims.push(
            Aim::new(format!("{what} ÷ rathole, plain"), ratio(ours, rathole)).goal(AtLeast(plain)),
        );
    }
    let p99 = |peer| found(peer, "keep-256", "p99_ms");
    aims.push(
        Aim::new(
            "p99, 256 kept connections ÷ rathole-tls",
            ratio(p99(OURS), p99("rathole-tls")),
        )
        .must(AtMost(0.1)),
    );
    let p50 = |peer| found(peer, "keep-1", "p50_ms");
    aims.push(
        Aim::new(
            "p50 added to direct, one connection, ms",
            difference(p50(OURS), p50("direct")),
        )
        .must(AtMost(0.25))
        .goal(AtMost(0.12)),
    );
    let tls = |row| found(OURS, row, "rps");
    aims.push(
        Aim::new(
            "requests/s, HTTP/2 visitors ÷ HTTP/1.1 over TLS",
            ratio(tls("tls-h2"), tls("tls-h1")),
        )
        .must(AtLeast(1.0)),
    );
    for (what, row, metric) in [
        ("requests/s, 32 kept connections", "keep-32", "rps"),
        ("one download", "download", "mb_per_s"),
        ("one upload", "upload", "mb_per_s"),
    ] {
        let ratio = ratio(
            found(OURS_OVER_WEBSOCKET, row, metric),
            found(OURS, row, metric),
        );
        aims.push(
            Aim::new(format!("{what}, websocket ÷ UDP"), ratio)
                .must(AtLeast(0.8))
                .goal(AtLeast(1.0)),
        );
    }
    aims
}

/// The scenes of 40 ms and 50 Mbit/s, whose names end with the loss in percent.
fn lossy(bench: &Bench, scene: &str) -> Vec<Aim> {
    const RTT: f64 = 40.0;
    let loss: Option<u32> = scene.rsplit('-').next().and_then(|loss| loss.parse().ok());
    let found = |peer: &str, row: &str, metric: &str| bench.median(scene, peer, row, metric);
    let share = found(OURS, "download", "share");
    let mut aims = vec![
        Aim::new(format!("{scene}: one download ÷ the link's rate"), share)
            .must(AtLeast(0.84))
            .goal(AtLeast(0.92)),
    ];
    let (name, best) = best(&OVER_TCP, |peer| found(peer, "download", "mbit"));
    let against_tcp = |peer, least| {
        Aim::new(
            format!("{scene}: one download, {peer} ÷ {name}, the best TCP peer on Cubic"),
            ratio(found(peer, "download", "mbit"), best),
        )
        .must(AtLeast(least))
    };
    match loss {
        Some(1) => aims.push(against_tcp(OURS, 10.0)),
        Some(3) => aims.extend([
            against_tcp(OURS, 20.0),
            against_tcp(OURS_OVER_WEBSOCKET, 10.0),
        ]),
        Some(5) => aims.push(against_tcp(OURS, 30.0)),
        _ => {}
    }
    let above_rtt = difference(found(OURS, "new20", "p50_ms"), Some(RTT));
    aims.push(
        Aim::new(
            format!("{scene}: new visitors, p50 above the round trip, ms"),
            above_rtt,
        )
        .must(AtMost(6.0))
        .goal(AtMost(3.0)),
    );
    let in_rtts = |row: &str| ratio(found(OURS, row, "p99_ms"), Some(RTT));
    if loss == Some(5) {
        aims.push(
            Aim::new(
                format!("{scene}: new visitors, p99 ÷ round trip"),
                in_rtts("new20"),
            )
            .must(AtMost(3.4))
            .goal(AtMost(2.6)),
        );
    }
    let (must, goal) = match loss {
        Some(0) => (1.6, 1.3),
        Some(5) => (3.0, 2.5),
        _ => return aims,
    };
    for bulk in ["download", "upload"] {
        let found = in_rtts(&format!("beside-{bulk}"));
        aims.push(
            Aim::new(
                format!("{scene}: beside a bulk {bulk}, p99 ÷ round trip"),
                found,
            )
            .must(AtMost(must))
            .goal(AtMost(goal)),
        );
    }
    aims
}

/// The benches of one scene that bears their name.
fn single(bench: &Bench, name: &str) -> Vec<Aim> {
    const DSL_RTT: f64 = 40.0;
    let found = |row: &str, metric: &str| bench.median(name, OURS, row, metric);
    match name {
        "long" => vec![
            Aim::new("one download ÷ the link's rate", found("download", "share"))
                .must(AtLeast(0.8)),
        ],
        "dsl" => vec![
            Aim::new(
                "beside a bulk upload, p99 above the round trip, ms",
                difference(found("beside-upload", "p99_ms"), Some(DSL_RTT)),
            )
            .must(AtMost(60.0)),
        ],
        "lte" => vec![
            Aim::new("share of the link used", found("varying", "share")).must(AtLeast(0.8)),
            Aim::new(
                "p95 of the time a packet queues, ms",
                found("varying", "wait_p95_ms"),
            )
            .must(AtMost(60.0)),
        ],
        "fair" => {
            let part = |metric| found("citizens", metric);
            vec![
                Aim::new("our part of our fair share", part("of_fair")).must(AtLeast(0.25)),
                Aim::new(
                    "what we leave to TCP Cubic of its fair share",
                    part("cubic_of_fair"),
                )
                .must(AtLeast(0.25)),
                Aim::new(
                    "what we leave to TCP BBR of its fair share",
                    part("bbr_of_fair"),
                )
                .must(AtLeast(0.25)),
                Aim::new("Jain's index of two of our own", found("twins", "jain"))
                    .must(AtLeast(0.9)),
            ]
        }
        _ => Vec::new(),
    }
}

pub fn ratio(ours: Option<f64>, theirs: Option<f64>) -> Option<f64> {
    ours.zip(theirs)
        .filter(|(_, theirs)| *theirs > 0.0)
        .map(|(ours, theirs)| ours / theirs)
}

fn difference(ours: Option<f64>, theirs: Option<f64>) -> Option<f64> {
    ours.zip(theirs).map(|(ours, theirs)| ours - theirs)
}

/// The peer with the highest figure, and that figure.
fn best<'a>(peers: &[&'a str], found: impl Fn(&str) -> Option<f64>) -> (&'a str, Option<f64>) {
    let figures = peers
        .iter()
        .filter_map(|peer| found(peer).map(|figure| (*peer, figure)));
    figures
        .max_by(|one, other| one.1.total_cmp(&other.1))
        .map_or(("nobody", None), |(peer, figure)| (peer, Some(figure)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bench(name: &'static str, lines: &[&str]) -> Bench {
        let head = "scene,congestion,peer,row,round,metric,value\n";
        Bench::parse(name, &(head.to_string() + &lines.join("\n"))).expect("a test's own file")
    }

    #[test]
    fn ours_is_compared_with_the_best_that_encrypts() {
        let bench = bench(
            "clean",
            &[
                "clean,cubic,rathole-noise,keep-32,1,rps,18000",
                "clean,cubic,rusnel,keep-32,1,rps,20000",
                "clean,cubic,bore,keep-32,1,rps,90000",
                "clean,own,qtunnel,keep-32,1,rps,19000",
            ],
        );

        let aims = section(&bench);

        assert!(
            aims.contains("÷ rusnel, the best encrypted peer | 0.95 | ≥ 1 ✗ |  |"),
            "{aims}"
        );
    }

    #[test]
    fn on_a_lossy_link_the_best_tcp_peer_on_cubic_counts() {
        let bench = bench(
            "wan",
            &[
                "wan-3,cubic,bore,download,1,mbit,2",
                "wan-3,bbr,bore,download,1,mbit,44",
                "wan-3,own,qtunnel,download,1,mbit,44",
            ],
        );

        let aims = section(&bench);

        assert!(aims.contains("| 22.00 | ≥ 20 ✓ |"), "{aims}");
    }

    #[test]
    fn without_us_there_are_no_aims() {
        assert_eq!(
            section(&bench("wan", &["wan-3,cubic,bore,download,1,mbit,2"])),
            ""
        );
    }
}
