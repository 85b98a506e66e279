//! How many times better or worse qtunnel is than each peer.

use crate::{samples::Bench, tables::number};

/// A line for each measurement, a column for each peer; nothing if qtunnel was not measured.
pub fn section(bench: &Bench) -> String {
    const OURS: &str = "qtunnel";
    let series = bench.series();
    if !series.iter().any(|name| name == OURS) {
        return String::new();
    }
    let others: Vec<_> = series.iter().filter(|name| *name != OURS).collect();
    let mut text = String::from(
        "**qtunnel against each: how many times more, or in how many times less time; above 1 qtunnel is \
         better**\n\n| |",
    );
    text.extend(others.iter().map(|name| format!(" {name} |")));
    text += &format!("\n| --- |{}\n", " --- |".repeat(others.len()));
    for scene in bench.scenes() {
        for (row, metric, better) in COMPARED {
            let Some(ours) = bench.median(scene, OURS, row, metric) else {
                continue;
            };
            text += &format!("| {scene}: {row}, {metric} |");
            for name in &others {
                let theirs = bench.median(scene, name, row, metric);
                let ratio = theirs.map(|theirs| better.ratio(ours, theirs));
                text += &match ratio {
                    Some(ratio) if ratio.is_finite() => format!(" {} |", number(ratio, 2)),
                    _ => " – |".to_string(),
                };
            }
            text.push('\n');
        }
    }
    text + "\n"
}

#[derive(Clone, Copy)]
enum Better {
    More,
    Less,
}

impl Better {
    fn ratio(self, ours: f64, theirs: f64) -> f64 {
        match self {
            Self::More => ours / theirs,
            Self::Less => theirs / ours,
        }
    }
}

const COMPARED: &[(&str, &str, Better)] = &[
    ("keep-1", "p50_ms", Better::Less),
    ("keep-32", "rps", Better::More),
    ("keep-256", "rps", Better::More),
    ("keep-256", "p99_ms", Better::Less),
    ("new-1", "p50_ms", Better::Less),
    ("new-32", "rps", Better::More),
    ("new-256", "rps", Better::More),
    ("download", "mb_per_s", Better::More),
    ("upload", "mb_per_s", Better::More),
    ("download", "mbit", Better::More),
    ("varying", "mbit", Better::More),
    ("new1", "p95_ms", Better::Less),
    ("new20", "p50_ms", Better::Less),
    ("new20", "p99_ms", Better::Less),
    ("keep20", "p99_ms", Better::Less),
    ("beside-download", "p99_ms", Better::Less),
    ("beside-upload", "p99_ms", Better::Less),
    ("beside-many", "p99_ms", Better::Less),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn above_one_is_better_for_rates_and_for_times() {
        let bench = Bench::parse(
            "wan",
            "scene,congestion,peer,row,round,metric,value\n\
             wan-3,own,qtunnel,download,1,mbit,40\n\
             wan-3,cubic,bore,download,1,mbit,4\n\
             wan-3,own,qtunnel,new20,1,p99_ms,100\n\
             wan-3,cubic,bore,new20,1,p99_ms,1000\n",
        )
        .expect("a test's own file");

        let section = section(&bench);

        assert!(
            section.contains("| wan-3: download, mbit | 10.00 |"),
            "{section}"
        );
        assert!(
            section.contains("| wan-3: new20, p99_ms | 10.00 |"),
            "{section}"
        );
    }
}
