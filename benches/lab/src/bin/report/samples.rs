//! The CSV file of one bench: who was measured, in which rows, and the medians.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

/// What one CSV file holds.
#[derive(Debug)]
pub struct Bench {
    pub name: &'static str,
    /// What the machine and the programs were, a line each.
    pub facts: Vec<String>,
    samples: Vec<Sample>,
}

/// One line of the file.
#[derive(Debug, Deserialize)]
struct Sample {
    scene: String,
    congestion: String,
    peer: String,
    row: String,
    #[expect(dead_code, reason = "it tells apart what the median joins")]
    round: u32,
    metric: String,
    value: f64,
}

impl Bench {
    pub fn read(name: &'static str, path: &Path) -> Result<Self> {
        let text =
            fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(name, &text).with_context(|| format!("cannot understand {}", path.display()))
    }

    pub fn parse(name: &'static str, text: &str) -> Result<Self> {
        let facts = text
            .lines()
            .filter_map(|line| line.strip_prefix("# "))
            .map(String::from)
            .collect();
        let samples: Vec<Sample> = csv::ReaderBuilder::new()
            .comment(Some(b'#'))
            .from_reader(text.as_bytes())
            .deserialize()
            .collect::<Result<_, _>>()?;
        ensure!(!samples.is_empty(), "there is not one measurement in it");
        Ok(Self {
            name,
            facts,
            samples,
        })
    }

    /// The scenes in the order in which they were measured.
    pub fn scenes(&self) -> Vec<&str> {
        unique(self.samples.iter().map(|sample| sample.scene.as_str()))
    }

    /// The peers, or what they were under another congestion control than Cubic: `bore (bbr)`.
    pub fn series(&self) -> Vec<String> {
        let mut series = unique(self.samples.iter().map(Sample::series));
        // The order of rounds is not one to read by.
        series.sort_by_key(|name| {
            let place = ORDER
                .iter()
                .position(|peer| name.split(' ').next() == Some(peer));
            (name.ends_with(')'), place)
        });
        series
    }

    /// The peers that did not work in some scene, each with that scene.
    pub fn failures(&self) -> Vec<(&str, &str)> {
        let failed = self.samples.iter().filter(|sample| sample.row == "failed");
        unique(failed.map(|sample| (sample.peer.as_str(), sample.scene.as_str())))
    }

    /// Whether anyone was measured in this row.
    pub fn has_row(&self, row: &str) -> bool {
        self.samples.iter().any(|sample| sample.row == row)
    }

    /// The median over the rounds; none if it was never measured or never worked.
    pub fn median(&self, scene: &str, series: &str, row: &str, metric: &str) -> Option<f64> {
        let mut values: Vec<_> = self
            .samples
            .iter()
            .filter(|s| {
                s.scene == scene && s.row == row && s.metric == metric && s.series() == series
            })
            .map(|s| s.value)
            .filter(|value| !value.is_nan())
            .collect();
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        match values.len() {
            0 => None,
            n if n % 2 == 1 => Some(values[middle]),
            _ => Some((values[middle - 1] + values[middle]) / 2.0),
        }
    }

    /// Requests that failed in all rounds together.
    pub fn errors(&self, scene: &str, series: &str, row: &str) -> f64 {
        self.samples
            .iter()
            .filter(|s| {
                s.scene == scene && s.row == row && s.metric == "errors" && s.series() == series
            })
            .map(|s| s.value)
            .sum()
    }
}

impl Sample {
    fn series(&self) -> String {
        match self.congestion.as_str() {
            "cubic" | "own" => self.peer.clone(),
            other => format!("{} ({other})", self.peer),
        }
    }
}

/// How tables and plots order the peers.
pub const ORDER: [&str; 11] = [
    "direct",
    "qtunnel",
    "qtunnel-websocket",
    "bore",
    "rathole",
    "rathole-noise",
    "rathole-tls",
    "rusnel",
    "rusnel-bbr",
    "ssh",
    "frp",
];

fn unique<T: PartialEq>(items: impl Iterator<Item = T>) -> Vec<T> {
    let mut seen = Vec::new();
    for item in items {
        if !seen.contains(&item) {
            seen.push(item);
        }
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "# kernel: Linux\n\
        scene,congestion,peer,row,round,metric,value\n\
        wan-0,cubic,bore,download,1,mbit,40\n\
        wan-0,cubic,bore,download,2,mbit,30\n\
        wan-0,cubic,bore,download,3,mbit,45\n\
        wan-0,bbr,bore,download,1,mbit,44\n\
        wan-0,own,qtunnel,download,1,mbit,46\n\
        wan-0,own,qtunnel,download,2,mbit,48\n\
        wan-0,own,qtunnel,new20,1,p50_ms,nan\n";

    fn bench() -> Bench {
        Bench::parse("wan", FILE).expect("a test's own file")
    }

    #[test]
    fn a_median_is_of_one_series_in_one_row() {
        let bench = bench();

        assert_eq!(
            bench.median("wan-0", "bore", "download", "mbit"),
            Some(40.0)
        );
        assert_eq!(
            bench.median("wan-0", "bore (bbr)", "download", "mbit"),
            Some(44.0)
        );
        assert_eq!(
            bench.median("wan-0", "qtunnel", "download", "mbit"),
            Some(47.0)
        );
    }

    #[test]
    fn what_never_worked_has_no_median() {
        assert_eq!(bench().median("wan-0", "qtunnel", "new20", "p50_ms"), None);
    }

    #[test]
    fn series_are_ordered_by_peer_and_then_by_congestion_control() {
        assert_eq!(bench().series(), ["qtunnel", "bore", "bore (bbr)"]);
    }

    #[test]
    fn facts_are_kept() {
        assert_eq!(bench().facts, ["kernel: Linux"]);
    }

    #[test]
    fn a_file_without_measurements_is_refused() {
        assert!(Bench::parse("wan", "scene,congestion,peer,row,round,metric,value\n").is_err());
    }
}
