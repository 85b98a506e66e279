//! The table: every case, many times.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crate::CASES;
use crate::cases::{Case, Length};

/// Figures and their names, by the case's number and the figure's.
type Measured = BTreeMap<(usize, usize), (&'static str, Vec<f64>)>;

/// `scripts/bench network` runs this, and says how often and where to write.
#[test]
#[ignore = "takes long: scripts/bench network"]
fn table() {
    let runs = number("QTUNNEL_NETWORK_RUNS", 20);
    let jobs = number("QTUNNEL_NETWORK_JOBS", 1);
    let wanted = std::env::var("QTUNNEL_NETWORK_CASES").unwrap_or_default();
    let out = PathBuf::from(std::env::var_os("QTUNNEL_NETWORK_OUT").expect("a directory"));
    let cases: Vec<_> = CASES
        .iter()
        .enumerate()
        .filter(|(_, case)| {
            let mut words = wanted.split_whitespace();
            wanted.is_empty() || words.any(|word| case.name.contains(word))
        })
        .collect();
    let measured = Mutex::new(Measured::new());
    let next = AtomicUsize::new(0);

    thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                loop {
                    let turn = next.fetch_add(1, Ordering::Relaxed);
                    if turn >= runs * cases.len() {
                        return;
                    }
                    let (number, case) = cases[turn % cases.len()];
                    measure(case, number, &measured);
                    write_tables(&out, &measured);
                }
            });
        }
    });
}

fn measure(case: &Case, number: usize, measured: &Mutex<Measured>) {
    let outcome = catch_unwind(AssertUnwindSafe(|| (case.run)(Length::Whole)));
    let broken = f64::from(u8::from(outcome.is_err()));
    let mut measured = measured.lock().expect("no panic");
    let figures = outcome.unwrap_or_default();
    eprintln!("{}: {figures:?}", case.name);
    let figures = figures.into_iter().enumerate();
    for (at, (name, figure)) in figures.chain([(LAST, ("broken off", broken))]) {
        let (_, values) = measured.entry((number, at)).or_insert((name, Vec::new()));
        values.push(figure);
    }
}

/// The number of the figure that comes last.
const LAST: usize = usize::MAX;

fn write_tables(out: &Path, measured: &Mutex<Measured>) {
    let measured = measured.lock().expect("no panic");
    let mut csv = String::from("case,figure,run,value\n");
    let mut table = String::from(HEAD);
    for ((number, _), (figure, values)) in &*measured {
        let case = &CASES[*number];
        for (run, value) in values.iter().enumerate() {
            let _ = writeln!(csv, "\"{}\",{figure},{},{value}", case.name, run + 1);
        }
        let mut sorted = values.clone();
        sorted.sort_by(f64::total_cmp);
        let (least, most) = (sorted[0], sorted[sorted.len() - 1]);
        let (name, runs, median) = (case.name, sorted.len(), median(&sorted));
        let row = format!("| {name} | {figure} | {runs} | {least} | {median} | {most} |");
        let _ = writeln!(table, "{row}");
    }
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let _ = writeln!(
        table,
        "\nLoad of the machine at the end, on {cores} cores: {load}"
    );
    std::fs::write(out.join("network.csv"), csv).expect("a directory");
    std::fs::write(out.join("network.md"), table).expect("a directory");
}

const HEAD: &str = "\
# When the agent's network changes

Written by `scripts/bench network`: real programs (a debug build) in network namespaces, 20 Mbit/s, round trips
of 40 ms where a carrier is lost and of 20 ms where the address changes; each case in `tests/network/cases.rs`.
Times in milliseconds.

*stall*: the longest pause of a download, which must arrive exactly. *switch*: until the agent says that it has
moved. *back*: from when UDP passes again until it is used. *answered*: until the first request is answered. *went
on*: until a download goes on. *failed*: of 20 small requests a second, those that failed. *broken off*: runs with
anything else wrong, such as a byte of a download.

| case | figure | runs | min | median | max |
| --- | --- | --: | --: | --: | --: |
";

fn median(sorted: &[f64]) -> f64 {
    let (below, above) = (sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2]);
    ((below + above) * 5.0).round() / 10.0
}

fn number(variable: &str, default: usize) -> usize {
    match std::env::var(variable) {
        Ok(number) => number.parse().expect("a number"),
        Err(_) => default,
    }
}
