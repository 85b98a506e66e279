//! What one direction of the link has done since its counters were last read.

use std::time::Duration;

/// Counters of one direction.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    /// Packets and bytes that entered, whatever became of them.
    pub packets: u64,
    pub bytes: u64,
    /// Bytes that came out at the far end, or will.
    pub carried: u64,
    /// Lost on the way, and in how many runs of losses.
    pub lost: u64,
    pub bursts: u64,
    /// Dropped because the queue was full, or because the link was cut.
    pub overflowed: u64,
    pub refused: u64,
    pub duplicated: u64,
    pub reordered: u64,
    pub corrupted: u64,
    /// Bytes that the link could have carried; none if it has no limit.
    pub capacity: Option<u64>,
    pub waits: Waits,
}

impl Stats {
    /// The counters as ` name.counter=value` fields.
    pub fn fields(&self, name: &str) -> String {
        let counters = [
            ("packets", self.packets),
            ("bytes", self.bytes),
            ("carried", self.carried),
            ("lost", self.lost),
            ("bursts", self.bursts),
            ("overflowed", self.overflowed),
            ("refused", self.refused),
            ("duplicated", self.duplicated),
            ("reordered", self.reordered),
            ("corrupted", self.corrupted),
            ("capacity", self.capacity.unwrap_or(0)),
            ("wait_p50_us", self.waits.quantile(0.5).as_micros() as u64),
            ("wait_p95_us", self.waits.quantile(0.95).as_micros() as u64),
            ("wait_p99_us", self.waits.quantile(0.99).as_micros() as u64),
        ];
        counters
            .iter()
            .map(|(counter, value)| format!(" {name}.{counter}={value}"))
            .collect()
    }
}

/// How long packets waited in the queue, in steps of [`Waits::STEP`].
#[derive(Clone, Debug, Default)]
pub struct Waits {
    counts: Vec<u64>,
    total: u64,
}

impl Waits {
    /// A quarter of a millisecond: finer than any delay that the laboratory judges.
    const STEP: Duration = Duration::from_micros(250);

    /// Ten seconds; whatever waits longer counts as this.
    const STEPS: usize = 40_000;

    pub fn record(&mut self, wait: Duration) {
        let step = (wait.as_nanos() / Self::STEP.as_nanos()).min(Self::STEPS as u128 - 1) as usize;
        if self.counts.len() <= step {
            self.counts.resize(step + 1, 0);
        }
        self.counts[step] += 1;
        self.total += 1;
    }

    /// The wait that a share `q` of the packets did not exceed, by the upper end of its step.
    pub fn quantile(&self, q: f64) -> Duration {
        let rank = (self.total as f64 * q).ceil() as u64;
        let mut seen = 0;
        for (step, count) in (1..).zip(&self.counts) {
            seen += count;
            if seen >= rank.max(1) {
                return Self::STEP * step;
            }
        }
        Duration::ZERO
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_of_nothing_are_zero() {
        assert_eq!(Waits::default().quantile(0.99), Duration::ZERO);
    }

    #[test]
    fn quantiles_are_those_of_what_was_recorded() {
        let mut waits = Waits::default();
        for n in 0..100 {
            waits.record(Duration::from_millis(n));
        }

        // The upper end of the step that holds 49 ms, and that holds 98 ms.
        assert_eq!(waits.quantile(0.5), Duration::from_micros(49_250));
        assert_eq!(waits.quantile(0.99), Duration::from_micros(98_250));
    }

    #[test]
    fn a_wait_beyond_the_scale_counts_as_its_end() {
        let mut waits = Waits::default();
        waits.record(Duration::from_secs(3_600));

        assert_eq!(waits.quantile(0.5), Duration::from_secs(10));
    }
}
