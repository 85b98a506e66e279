//! The table: every case, many times.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crate::CASES;
use crate::cases::{Case, Length};

/// Figures by case and name, in the order of the cases.
type Measured = BTreeMap<(usize, &'static str), Vec<f64>>;

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
    for (name, figure) in figures.into_iter().chain([("broken", broken)]) {
        measured.entry((number, name)).or_default().push(figure);
    }
}

fn write_tables(out: &std::path::Path, measured: &Mutex<Measured>) {
    let measured = measured.lock().expect("no panic");
    let mut csv = String::from("case,figure,run,value\n");
    let mut table = String::from("| case | figure | runs | min | median | max |\n");
    table.push_str("| --- | --- | --: | --: | --: | --: |\n");
    for ((number, name), values) in &*measured {
        let case = CASES[*number].name;
        for (run, value) in values.iter().enumerate() {
            let _ = writeln!(csv, "\"{case}\",{name},{},{value}", run + 1);
        }
        let mut sorted = values.clone();
        sorted.sort_by(f64::total_cmp);
        let (least, median, most) = (sorted[0], median(&sorted), sorted[sorted.len() - 1]);
        let runs = sorted.len();
        let _ = writeln!(
            table,
            "| {case} | {name} | {runs} | {least} | {median} | {most} |"
        );
    }
    std::fs::write(out.join("network.csv"), csv).expect("a directory");
    std::fs::write(out.join("network.md"), table).expect("a directory");
}

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
