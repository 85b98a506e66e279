//! Turns what the laboratory has measured into words and pictures.
//!
//! `quantiles` condenses the log of one load generator into `name=value` words for the CSV file;
//! `write` turns the CSV files of a directory into a Markdown page and SVG plots beside them.

mod aim;
mod aims;
mod figures;
mod plots;
mod quantiles;
mod ratios;
mod samples;
mod scale;
mod tables;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use clap::Parser;

use crate::samples::Bench;

/// Turns what the laboratory has measured into words and pictures.
#[derive(Debug, Parser)]
enum Command {
    /// Condense a log of hey (`-o csv`) or h2load (`--log-file`).
    Quantiles { log: PathBuf },
    /// Write README.md and the plots from the CSV files of a directory.
    Write { directory: PathBuf },
}

fn main() -> Result<()> {
    match Command::parse() {
        Command::Quantiles { log } => {
            let text = fs::read_to_string(&log)
                .with_context(|| format!("cannot read {}", log.display()))?;
            println!("{}", quantiles::condense(&text)?);
            Ok(())
        }
        Command::Write { directory } => write(&directory),
    }
}

/// The CSV files that a directory may hold, in the order of the page.
const BENCHES: [&str; 11] = [
    "clean",
    "scale",
    "wan",
    "burst",
    "long",
    "satellite",
    "dsl",
    "dsl-agent",
    "lte",
    "heavy",
    "fair",
];

fn write(directory: &Path) -> Result<()> {
    let mut benches = Vec::new();
    for name in BENCHES {
        let path = directory.join(name).with_extension("csv");
        if path.exists() {
            benches.push(Bench::read(name, &path)?);
        }
    }
    ensure!(!benches.is_empty(), "no results in {}", directory.display());

    let mut page = String::from(INTRODUCTION);
    for bench in &benches {
        page += &tables::section(bench);
        for plot in plots::draw(bench, directory)? {
            page += &format!("![{}]({})\n\n", plot.title, plot.file);
        }
        page += &ratios::section(bench);
        page += &aims::section(bench);
    }
    let path = directory.join("README.md");
    fs::write(&path, &page).with_context(|| format!("cannot write {}", path.display()))?;
    println!("{page}\nwritten to {}", path.display());
    Ok(())
}

const INTRODUCTION: &str = "# Results

Written by `scripts/bench`; the CSV files beside this page hold every round. A figure is the median of the
rounds of one run, in which the peers took turns. `direct` is the origin without a tunnel.

";
