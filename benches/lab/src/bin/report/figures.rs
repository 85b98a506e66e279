//! Which plots there are, and the points that belong on them.

use crate::samples::Bench;

/// What one plot shows.
pub struct Figure {
    pub bench: &'static str,
    pub file: &'static str,
    pub title: &'static str,
    pub unit: &'static str,
    pub kind: Kind,
    /// Bars: the groups. Lines: the one row whose scenes are the x axis.
    pub rows: &'static [&'static str],
    pub metric: &'static str,
}

pub enum Kind {
    /// A group for each row, a bar for each peer.
    Bars,
    /// A line for each peer over the loss in percent, on a logarithmic scale.
    Lines,
}

pub const FIGURES: &[Figure] = &[
    Figure {
        bench: "clean",
        file: "requests",
        title: "Requests per second on clean loopback (more is better)",
        unit: "requests/s",
        kind: Kind::Bars,
        rows: &[
            "keep-1", "keep-32", "keep-256", "new-1", "new-32", "new-256",
        ],
        metric: "rps",
    },
    Figure {
        bench: "clean",
        file: "bulk",
        title: "One large body on clean loopback (more is better)",
        unit: "MB/s",
        kind: Kind::Bars,
        rows: &["download", "upload"],
        metric: "mb_per_s",
    },
    Figure {
        bench: "wan",
        file: "download",
        title: "One download over 40 ms, 50 Mbit/s (more is better)",
        unit: "Mbit/s",
        kind: Kind::Lines,
        rows: &["download"],
        metric: "mbit",
    },
    Figure {
        bench: "wan",
        file: "new-visitors",
        title: "New visitors over 40 ms, 50 Mbit/s, p99 (less is better)",
        unit: "ms",
        kind: Kind::Lines,
        rows: &["new20"],
        metric: "p99_ms",
    },
    Figure {
        bench: "wan",
        file: "beside-download",
        title: "Small requests beside a download over 40 ms, 50 Mbit/s, p99 (less is better)",
        unit: "ms",
        kind: Kind::Lines,
        rows: &["beside-download"],
        metric: "p99_ms",
    },
    Figure {
        bench: "burst",
        file: "download",
        title: "One download over 40 ms, 50 Mbit/s, losses in bursts (more is better)",
        unit: "Mbit/s",
        kind: Kind::Lines,
        rows: &["download"],
        metric: "mbit",
    },
];

/// A peer and its points: the group or the loss, and the figure.
pub struct Series {
    pub name: String,
    pub points: Vec<(f64, f64)>,
}

pub fn collect(bench: &Bench, figure: &Figure) -> Vec<Series> {
    let scenes = bench.scenes();
    let points = |name: &str| match figure.kind {
        Kind::Bars => (0..)
            .zip(figure.rows)
            .filter_map(|(group, row)| {
                Some((
                    f64::from(group),
                    bench.median(scenes[0], name, row, figure.metric)?,
                ))
            })
            .collect(),
        Kind::Lines => {
            let mut points: Vec<(f64, f64)> = scenes
                .iter()
                .filter_map(|scene| {
                    let loss = scene.rsplit('-').next()?.parse().ok()?;
                    Some((
                        loss,
                        bench.median(scene, name, figure.rows[0], figure.metric)?,
                    ))
                })
                .collect();
            points.sort_by(|one, other| one.0.total_cmp(&other.0));
            points
        }
    };
    bench
        .series()
        .into_iter()
        // Without a tunnel everything is faster by far on loopback, and the tunnels would be too small to see.
        .filter(|name| !(matches!(figure.kind, Kind::Bars) && name == "direct"))
        .map(|name| Series {
            points: points(&name),
            name,
        })
        .filter(|series| !series.points.is_empty())
        .collect()
}
