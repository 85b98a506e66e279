//! The Markdown tables of one bench.

use crate::samples::Bench;

/// Everything that a page says about one bench, but for plots and aims.
pub fn section(bench: &Bench) -> String {
    let title = title(bench.name);
    let mut page = format!("## {title}\n\n");
    for view in VIEWS {
        page += &table(bench, view);
    }
    for (peer, scene) in bench.failures() {
        page += &format!("`{peer}` did not come up in {scene}, in one round at least.\n\n");
    }
    page += "<details><summary>Machine and programs</summary>\n\n";
    for fact in &bench.facts {
        page += &format!("- {fact}\n");
    }
    page += "\n</details>\n\n";
    page
}

/// What the bench of this name is about.
pub fn title(bench: &str) -> &str {
    match bench {
        "clean" => "Clean loopback, answers of 1 KiB",
        "scale" => "Cost and scale, on clean loopback",
        "wan" => "40 ms, 50 Mbit/s, 100 ms of queue, independent loss",
        "burst" => "The same with losses in bursts of five",
        "long" => "200 ms, 100 Mbit/s",
        "satellite" => "600 ms, 20 Mbit/s",
        "dsl" => "10 Mbit/s down, 1 Mbit/s up, a second of queue",
        "dsl-agent" => "The same with the narrow direction downwards",
        "lte" => "A rate that walks between 2 and 50 Mbit/s, a step a second",
        "heavy" => "A standing loss of 25 %",
        "fair" => "Beside other downloads on one link of 50 Mbit/s",
        other => other,
    }
}

/// One kind of table: a line for each peer, a column for each row or scene.
struct View {
    title: &'static str,
    rows: &'static [&'static str],
    /// The metrics of a cell and how many decimals each has.
    metrics: &'static [(&'static str, usize)],
    /// The cell with the metrics in place of `{}`.
    cell: &'static str,
}

const VIEWS: &[View] = &[
    View {
        title: "Requests/s over kept connections (p50 / p99 in ms)",
        rows: &["keep-1", "keep-32", "keep-256"],
        metrics: &[("rps", 0), ("p50_ms", 2), ("p99_ms", 1)],
        cell: "{} ({} / {})",
    },
    View {
        title: "Requests/s with a new connection each (p50 / p99 in ms)",
        rows: &["new-1", "new-32", "new-256"],
        metrics: &[("rps", 0), ("p50_ms", 2), ("p99_ms", 1)],
        cell: "{} ({} / {})",
    },
    View {
        title: "Requests/s over HTTPS (p50 / p99 in ms): HTTP/1.1 on 32 connections, HTTP/2 on 32 × 10 streams",
        rows: &["tls-h1", "tls-h2"],
        metrics: &[("rps", 0), ("p50_ms", 2), ("p99_ms", 1)],
        cell: "{} ({} / {})",
    },
    View {
        title: "One large body, MB/s",
        rows: &["download", "upload"],
        metrics: &[("mb_per_s", 0)],
        cell: "{}",
    },
    View {
        title: "Processor seconds of the public end + the agent, over the whole row",
        rows: &["keep-32", "new-32", "download", "upload"],
        metrics: &[("edge_cpu_s", 2), ("agent_cpu_s", 2)],
        cell: "{} + {}",
    },
    View {
        title: "Peak resident memory after all rows, MiB: public end / agent",
        rows: &["memory"],
        metrics: &[("edge_peak_mib", 1), ("agent_peak_mib", 1)],
        cell: "{} / {}",
    },
    View {
        title: "From the start of the agent to the first answer, and of a known edge, ms",
        rows: &["start-up"],
        metrics: &[("agent_ms", 0), ("edge_ms", 0)],
        cell: "{} / {}",
    },
    View {
        title: "From the start of the agent to the first answer, ms",
        rows: &["start-up"],
        metrics: &[("agent_ms", 0)],
        cell: "{}",
    },
    View {
        title: "Resident memory with nothing to do, MiB (of it anonymous): public end / agent",
        rows: &["idle"],
        metrics: &[
            ("edge_mib", 1),
            ("edge_anon_mib", 1),
            ("agent_mib", 1),
            ("agent_anon_mib", 1),
        ],
        cell: "{} ({}) / {} ({})",
    },
    View {
        title: "Memory for each idle WebSocket, KiB: public end / agent; 10,000 of them with 16 agents",
        rows: &["websockets-1000", "streams-10000"],
        metrics: &[("edge_kib_each", 1), ("agent_kib_each", 1)],
        cell: "{} / {}",
    },
    View {
        title: "Memory of the edge for each idle agent, KiB",
        rows: &["agents-100", "agents-1000"],
        metrics: &[("edge_kib_each", 1)],
        cell: "{}",
    },
    View {
        title: "500 visitors that read 10 KB/s: peak memory in MiB (public end / agent), share of them that is served, and p50 / p99 of others' requests in ms",
        rows: &["slow-500"],
        metrics: &[
            ("edge_peak_mib", 0),
            ("agent_peak_mib", 0),
            ("served", 2),
            ("p50_ms", 1),
            ("p99_ms", 1),
        ],
        cell: "{} / {}, {}, {} / {}",
    },
    View {
        title: "While one address holds 500 connections in a state: p99 of others in ms (times that without the attack), and memory of the public end before / at the peak / a minute after, MiB",
        rows: &[
            "hostile-tls-handshake",
            "hostile-head",
            "hostile-body",
            "hostile-unread",
            "hostile-http2-preface",
            "hostile-http2-idle",
        ],
        metrics: HOSTILE,
        cell: "{} ({} ×), {} / {} / {}",
    },
    View {
        title: "The same with 100 HTTP/2 connections of 100 conversations each",
        rows: &[
            "hostile-http2-head",
            "hostile-http2-body",
            "hostile-http2-unread",
            "hostile-http2-no-window",
        ],
        metrics: HOSTILE,
        cell: "{} ({} ×), {} / {} / {}",
    },
    View {
        title: "The same with 2,000 QUIC handshakes a second that never finish (so many were sent); and from the start of another agent to its first answer meanwhile, ms",
        rows: &["hostile-handshakes"],
        metrics: &[
            ("p99_ms", 1),
            ("slowdown", 2),
            ("edge_before_mib", 0),
            ("edge_peak_mib", 0),
            ("edge_after_mib", 0),
            ("attack_per_s", 0),
            ("late_agent_ms", 0),
        ],
        cell: "{} ({} ×), {} / {} / {} ({}); {}",
    },
    View {
        title: "Over N tunnels of as few agents as can be: requests/s (µs of processor time per request, edge + agents)",
        rows: &["tunnels-1", "tunnels-10", "tunnels-100", "tunnels-1000"],
        metrics: &[("rps", 0), ("edge_us", 1), ("agent_us", 1)],
        cell: "{} ({} + {})",
    },
    View {
        title: "Over N agents with a tunnel each: requests/s (µs of processor time per request, edge + agents)",
        rows: &["agents-1", "agents-10", "agents-100", "agents-1000"],
        metrics: &[("rps", 0), ("edge_us", 1), ("agent_us", 1)],
        cell: "{} ({} + {})",
    },
    View {
        title: "Edge of N workers, each request of a connection for another of 16 agents: requests/s (µs of processor time per request, edge + agents)",
        rows: &["workers-1", "workers-2", "workers-4"],
        metrics: &[("rps", 0), ("edge_us", 1), ("agent_us", 1)],
        cell: "{} ({} + {})",
    },
    View {
        title: "Beside N idle WebSockets, over 16 agents: requests/s (µs of processor time per request, edge + agents)",
        rows: &[
            "streams-1",
            "streams-10",
            "streams-100",
            "streams-1000",
            "streams-10000",
        ],
        metrics: &[("rps", 0), ("edge_us", 1), ("agent_us", 1)],
        cell: "{} ({} + {})",
    },
    View {
        title: "One download, Mbit/s",
        rows: &["download", "varying"],
        metrics: &[("mbit", 1)],
        cell: "{}",
    },
    View {
        title: "The link while its rate varies: share of it used, p95 of the time a packet queues in ms",
        rows: &["varying"],
        metrics: &[("share", 2), ("wait_p95_ms", 0)],
        cell: "{}, {}",
    },
    View {
        title: "One visitor, 10 KiB, a new connection each: p50 / p95 / p99 in ms",
        rows: &["new1"],
        metrics: &[("p50_ms", 0), ("p95_ms", 0), ("p99_ms", 0)],
        cell: "{} / {} / {}",
    },
    View {
        title: "20 visitors, 10 KiB, a new connection each: p50 / p95 / p99 in ms",
        rows: &["new20"],
        metrics: &[("p50_ms", 0), ("p95_ms", 0), ("p99_ms", 0)],
        cell: "{} / {} / {}",
    },
    View {
        title: "20 visitors, 10 KiB, kept connections: p50 / p95 / p99 in ms",
        rows: &["keep20"],
        metrics: &[("p50_ms", 0), ("p95_ms", 0), ("p99_ms", 0)],
        cell: "{} / {} / {}",
    },
    View {
        title: "Small requests beside a bulk download: p50 / p95 / p99 in ms",
        rows: &["beside-download"],
        metrics: &[("p50_ms", 0), ("p95_ms", 0), ("p99_ms", 0)],
        cell: "{} / {} / {}",
    },
    View {
        title: "Small requests beside twenty downloads: p50 / p95 / p99 in ms",
        rows: &["beside-many"],
        metrics: &[("p50_ms", 0), ("p95_ms", 0), ("p99_ms", 0)],
        cell: "{} / {} / {}",
    },
    View {
        title: "Small requests beside a bulk upload: p50 / p95 / p99 in ms",
        rows: &["beside-upload"],
        metrics: &[("p50_ms", 0), ("p95_ms", 0), ("p99_ms", 0)],
        cell: "{} / {} / {}",
    },
    View {
        title: "What a download puts on the link, Mbit/s",
        rows: &["download"],
        metrics: &[("sent_mbit", 1)],
        cell: "{}",
    },
    View {
        title: "A download beside one direct on Cubic and one on BBR: each one's part of its fair share",
        rows: &["citizens"],
        metrics: &[("of_fair", 2), ("cubic_of_fair", 2), ("bbr_of_fair", 2)],
        cell: "{} (Cubic {}, BBR {})",
    },
    View {
        title: "Two downloads through two agents: Jain's index (Mbit/s together)",
        rows: &["twins"],
        metrics: &[("jain", 3), ("mbit", 1)],
        cell: "{} ({})",
    },
];

/// What an attack does to others and to the edge.
const HOSTILE: &[(&str, usize)] = &[
    ("p99_ms", 1),
    ("slowdown", 2),
    ("edge_before_mib", 0),
    ("edge_peak_mib", 0),
    ("edge_after_mib", 0),
];

fn table(bench: &Bench, view: &View) -> String {
    let scenes = bench.scenes();
    let columns: Vec<(&str, &str)> = view
        .rows
        .iter()
        .filter(|row| bench.has_row(row))
        .flat_map(|row| scenes.iter().map(|scene| (*scene, *row)))
        .collect();
    let lines: Vec<_> = bench
        .series()
        .into_iter()
        .map(|series| {
            let cells = columns
                .iter()
                .map(|(scene, row)| cell(bench, view, scene, &series, row));
            (series.clone(), cells.collect::<Vec<_>>())
        })
        .filter(|(_, cells)| cells.iter().any(Option::is_some))
        .collect();
    if lines.is_empty() {
        return String::new();
    }

    let heads = columns
        .iter()
        .map(|(scene, row)| match (scenes.len(), view.rows.len()) {
            (1, 1) => "",
            (1, _) => row,
            _ => scene,
        });
    let mut text = format!("**{}**\n\n| |", view.title);
    text.extend(heads.map(|head| format!(" {head} |")));
    text += &format!("\n| --- |{}\n", " --- |".repeat(columns.len()));
    for (series, cells) in lines {
        text += &format!("| {series} |");
        text.extend(
            cells
                .into_iter()
                .map(|cell| format!(" {} |", cell.unwrap_or("–".into()))),
        );
        text.push('\n');
    }
    text + "\n"
}

/// One cell; none if nothing of it was measured.
fn cell(bench: &Bench, view: &View, scene: &str, series: &str, row: &str) -> Option<String> {
    let mut text = view.cell.to_string();
    for (metric, decimals) in view.metrics {
        let value = bench.median(scene, series, row, metric)?;
        text = text.replacen("{}", &number(value, *decimals), 1);
    }
    let errors = bench.errors(scene, series, row);
    if errors > 0.0 && view.metrics[0].0 != "edge_cpu_s" {
        text += &format!(", {} failed", number(errors, 0));
    }
    Some(text)
}

/// A number with so many decimals and a comma between thousands.
pub fn number(value: f64, decimals: usize) -> String {
    let text = format!("{value:.decimals$}");
    let whole = text.split('.').next().map_or(0, str::len);
    let mut grouped = String::new();
    for (place, digit) in text.char_indices() {
        if place > 0 && place < whole && (whole - place) % 3 == 0 && !grouped.ends_with('-') {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_by_thousands() {
        assert_eq!(number(1_234_567.0, 0), "1,234,567");
        assert_eq!(number(999.95, 1), "1,000.0");
        assert_eq!(number(-123.0, 0), "-123");
        assert_eq!(number(0.125, 2), "0.12");
    }

    #[test]
    fn a_table_has_a_line_for_each_peer_and_says_what_failed() {
        let bench = Bench::parse(
            "clean",
            "scene,congestion,peer,row,round,metric,value\n\
             clean,cubic,bore,upload,1,mb_per_s,1200\n\
             clean,cubic,bore,upload,1,errors,1\n\
             clean,cubic,direct,upload,1,mb_per_s,4000\n",
        )
        .expect("a test's own file");

        let page = section(&bench);

        assert!(
            page.contains(
                "| | upload |\n| --- | --- |\n| direct | 4,000 |\n| bore | 1,200, 1 failed |\n"
            ),
            "{page}"
        );
    }
}
