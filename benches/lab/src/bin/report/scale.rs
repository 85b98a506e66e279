//! What qtunnel aims for in cost and scale.

use crate::{
    aim::{
        Aim,
        Bound::{AtLeast, AtMost},
    },
    aims::{OURS, OURS_OVER_WEBSOCKET, ratio},
    samples::Bench,
};

/// The aims over both carriers.
pub fn aims(bench: &Bench) -> Vec<Aim> {
    let mut aims = Vec::new();
    for peer in [OURS, OURS_OVER_WEBSOCKET] {
        for (kind, what, numbers) in [
            ("tunnels", "tunnels", &NUMBERS[..4]),
            ("agents", "agents", &NUMBERS[..4]),
            ("streams", "idle streams", &NUMBERS[..]),
        ] {
            aims.extend(flat(bench, peer, kind, what, numbers));
        }
        aims.extend(memory(bench, peer));
    }
    aims.extend(hostile(bench));
    aims
}

const NUMBERS: [u32; 5] = [1, 10, 100, 1_000, 10_000];

/// The worst of the larger numbers against one: requests/s and processor time per request.
fn flat(bench: &Bench, peer: &str, kind: &str, what: &str, numbers: &[u32]) -> [Aim; 2] {
    let rps = |number: u32| bench.median("scale", peer, &format!("{kind}-{number}"), "rps");
    let cost = |number: u32| {
        let row = format!("{kind}-{number}");
        let cost = |metric| bench.median("scale", peer, &row, metric);
        Some(cost("edge_us")? + cost("agent_us")?)
    };
    let more = || numbers.iter().copied().filter(|number| *number > 1);
    let most = numbers.last().copied().unwrap_or(1);
    let slowest = more().filter_map(|number| ratio(rps(number), rps(1)));
    let dearest = more().filter_map(|number| ratio(cost(number), cost(1)));
    let slowest = Aim::new(
        format!("{peer}: requests/s with up to {most} {what} ÷ with 1, the least"),
        slowest.min_by(f64::total_cmp),
    );
    let dearest = Aim::new(
        format!("{peer}: processor time per request with up to {most} {what} ÷ with 1, the most"),
        dearest.max_by(f64::total_cmp),
    );
    // Requests of one session share packets and system calls, those of many cannot.
    match kind {
        "agents" => [slowest.goal(AtLeast(0.85)), dearest.goal(AtMost(1.15))],
        _ => [slowest.must(AtLeast(0.85)), dearest.must(AtMost(1.15))],
    }
}

fn memory(bench: &Bench, peer: &str) -> [Aim; 6] {
    let found = |row: &str, metric: &str| bench.median("scale", peer, row, metric);
    let aim = |what: &str, found: Option<f64>, most: f64| {
        Aim::new(format!("{peer}: {what}"), found).must(AtMost(most))
    };
    [
        aim("an idle agent, MiB", found("idle", "agent_mib"), 12.0),
        aim(
            "edge, for each of 1,000 idle agents, KiB",
            found("agents-1000", "edge_kib_each"),
            48.0,
        ),
        aim(
            "edge, for each of 10,000 idle WebSockets, KiB",
            found("streams-10000", "edge_kib_each"),
            32.0,
        ),
        aim(
            "edge with 500 slow visitors, MiB",
            found("slow-500", "edge_peak_mib"),
            64.0,
        ),
        aim(
            "agent with 500 slow visitors, MiB",
            found("slow-500", "agent_peak_mib"),
            64.0,
        ),
        aim(
            "p99 beside 500 slow visitors, ms",
            found("slow-500", "p99_ms"),
            200.0,
        ),
    ]
}

/// What attacks may cost: the others a fifth of their time, and the edge no memory for good.
fn hostile(bench: &Bench) -> Vec<Aim> {
    let found = |row: &str, metric: &str| bench.median("scale", OURS, row, metric);
    let more = |row: &str, metric: &str| Some(found(row, metric)? - found(row, "edge_before_mib")?);
    let mut aims = Vec::new();
    for row in HOSTILE {
        aims.extend([
            Aim::new(
                format!("{row}: others' p99 with the attack ÷ without"),
                found(row, "slowdown"),
            )
            .must(AtMost(1.2)),
            Aim::new(
                format!("{row}: more memory of the edge a minute after, MiB"),
                more(row, "edge_after_mib"),
            )
            .must(AtMost(16.0)),
        ]);
    }
    aims.extend([
        Aim::new(
            "hostile-handshakes: more memory of the edge at the peak, MiB",
            more("hostile-handshakes", "edge_peak_mib"),
        )
        .must(AtMost(100.0)),
        Aim::new(
            "hostile-handshakes: another agent's first answer, ms",
            found("hostile-handshakes", "late_agent_ms"),
        )
        .must(AtMost(2_000.0)),
    ]);
    aims
}

const HOSTILE: [&str; 11] = [
    "hostile-tls-handshake",
    "hostile-head",
    "hostile-body",
    "hostile-unread",
    "hostile-http2-preface",
    "hostile-http2-idle",
    "hostile-http2-head",
    "hostile-http2-body",
    "hostile-http2-unread",
    "hostile-http2-no-window",
    "hostile-handshakes",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_number_is_judged() {
        let bench = Bench::parse(
            "scale",
            "scene,congestion,peer,row,round,metric,value\n\
             scale,cubic,qtunnel,tunnels-1,1,rps,20000\n\
             scale,cubic,qtunnel,tunnels-10,1,rps,15000\n\
             scale,cubic,qtunnel,tunnels-100,1,rps,19000\n",
        )
        .expect("a test's own file");

        let lines: String = aims(&bench).iter().filter_map(Aim::line).collect();

        assert_eq!(
            lines,
            "| qtunnel: requests/s with up to 1000 tunnels ÷ with 1, the least | 0.75 | ≥ 0.85 ✗ |  |\n"
        );
    }
}
