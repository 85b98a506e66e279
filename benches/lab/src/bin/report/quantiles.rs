//! From one load generator's log to a handful of figures.

use std::fmt;

use anyhow::{Context, Result};

/// What a log says about the requests that were answered.
#[derive(Debug, PartialEq)]
pub struct Summary {
    answered: usize,
    /// Answers other than 200.
    errors: usize,
    p50: f64,
    p95: f64,
    p99: f64,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "requests={} errors={}", self.answered, self.errors)?;
        for (name, value) in [("p50", self.p50), ("p95", self.p95), ("p99", self.p99)] {
            write!(f, " {name}_ms={value:.3}")?;
        }
        Ok(())
    }
}

/// Condense a log of hey (CSV with a header, seconds) or h2load (tab separated, microseconds).
pub fn condense(log: &str) -> Result<Summary> {
    let hey = log.starts_with("response-time");
    let mut times = Vec::new();
    let mut errors = 0;
    for (number, line) in log.lines().enumerate().skip(usize::from(hey)) {
        let fields: Vec<_> = line.split(if hey { ',' } else { '\t' }).collect();
        let columns = if hey { (0, 6) } else { (2, 1) };
        let (time, status) = fields
            .get(columns.0)
            .and_then(|time| time.parse::<f64>().ok())
            .zip(fields.get(columns.1))
            .with_context(|| {
                format!(
                    "line {} is neither hey's nor h2load's: {line:?}",
                    number + 1
                )
            })?;
        if *status == "200" {
            times.push(time * if hey { 1e3 } else { 1e-3 });
        } else {
            errors += 1;
        }
    }
    times.sort_by(f64::total_cmp);
    Ok(Summary {
        answered: times.len(),
        errors,
        p50: quantile(&times, 0.5),
        p95: quantile(&times, 0.95),
        p99: quantile(&times, 0.99),
    })
}

/// The smallest of the sorted values that a share `q` of them does not exceed; NaN of nothing.
pub fn quantile(sorted: &[f64], q: f64) -> f64 {
    let rank = (sorted.len() as f64 * q).ceil() as usize;
    sorted
        .get(rank.saturating_sub(1))
        .copied()
        .unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_occurred() {
        let hundred: Vec<_> = (1..=100).map(f64::from).collect();

        assert_eq!(quantile(&hundred, 0.5), 50.0);
        assert_eq!(quantile(&hundred, 0.99), 99.0);
        assert_eq!(quantile(&hundred[..1], 0.99), 1.0);
        assert!(quantile(&[], 0.5).is_nan());
    }

    #[test]
    fn a_log_of_hey_is_understood() {
        let log = "response-time,DNS+dialup,DNS,Request-write,Response-delay,Response-read,status-code,offset\n\
            0.0021,0.0001,0.0000,0.0000,0.0020,0.0000,200,0.1\n\
            0.0450,0.0001,0.0000,0.0000,0.0020,0.0000,502,0.2\n";

        assert_eq!(
            condense(log).expect("a log of hey").to_string(),
            "requests=1 errors=1 p50_ms=2.100 p95_ms=2.100 p99_ms=2.100"
        );
    }

    #[test]
    fn a_log_of_h2load_is_understood() {
        let log = "1780000000000000\t200\t1500\n1780000000000100\t200\t2500\n";

        assert_eq!(
            condense(log).expect("a log of h2load").to_string(),
            "requests=2 errors=0 p50_ms=1.500 p95_ms=2.500 p99_ms=2.500"
        );
    }

    #[test]
    fn anything_else_is_refused_with_its_line() {
        let error = condense("hello\n").expect_err("that is no log");

        assert!(error.to_string().contains("line 1"), "{error}");
    }
}
