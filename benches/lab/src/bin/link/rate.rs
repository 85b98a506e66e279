//! How fast the link carries: without limit, at one rate, or at a rate that changes by schedule.

use std::{str::FromStr, time::Duration};

use anyhow::{Context, Result, ensure};

/// The link's rate over time: steps of equal length, repeated for ever.
#[derive(Clone, Debug)]
pub struct Rate {
    /// Bits per second in each step; empty means without limit.
    steps: Vec<u64>,
    step: Duration,
}

impl Rate {
    /// Use each of `self`'s rates for `step` before the next.
    pub fn with_step(mut self, step: Duration) -> Self {
        self.step = step;
        self
    }

    /// The highest rate of the schedule in bits per second; none if the link has no limit.
    pub fn peak(&self) -> Option<u64> {
        self.steps.iter().copied().max()
    }

    /// When the last bit of `bytes` has left, if the first one leaves at `start` at the earliest.
    pub fn finish(&self, start: Duration, bytes: usize) -> Duration {
        if self.steps.is_empty() {
            return start;
        }
        let (mut now, mut bits) = (start, bytes as u64 * 8);
        loop {
            let (rate, end) = self.step_at(now);
            let room = bits_in(rate, end - now);
            if bits <= room {
                return now + time_of(bits, rate);
            }
            bits -= room;
            now = end;
        }
    }

    /// How many bytes the link can carry between two moments; none if it has no limit.
    pub fn capacity(&self, from: Duration, until: Duration) -> Option<u64> {
        if self.steps.is_empty() {
            return None;
        }
        let (mut now, mut bits) = (from, 0);
        while now < until {
            let (rate, end) = self.step_at(now);
            let end = end.min(until);
            bits += bits_in(rate, end - now);
            now = end;
        }
        Some(bits / 8)
    }

    /// The rate in force at `now`, and when it ends.
    fn step_at(&self, now: Duration) -> (u64, Duration) {
        let nth = now.as_nanos() / self.step.as_nanos();
        let rate = self.steps[(nth % self.steps.len() as u128) as usize];
        let end = (nth + 1) * self.step.as_nanos();
        (rate, Duration::from_nanos(end as u64))
    }
}

impl FromStr for Rate {
    type Err = anyhow::Error;

    /// Parse Mbit/s: `0` (no limit), `50`, or `2,50,10.5` (one after the other).
    fn from_str(text: &str) -> Result<Self> {
        let mut steps = Vec::new();
        for word in text.split(',') {
            let mbit: f64 = word
                .parse()
                .with_context(|| format!("{word:?} is not a number"))?;
            ensure!(
                (0.0..=100_000.0).contains(&mbit),
                "a rate lies between 0 and 100,000 Mbit/s"
            );
            steps.push((mbit * 1e6) as u64);
        }
        if steps == [0] {
            steps.clear();
        } else {
            ensure!(
                steps.iter().any(|&rate| rate > 0),
                "a schedule needs a rate above 0"
            );
        }
        Ok(Self {
            steps,
            step: Duration::from_secs(1),
        })
    }
}

const NANOS: u128 = 1_000_000_000;

fn bits_in(rate: u64, time: Duration) -> u64 {
    (u128::from(rate) * time.as_nanos() / NANOS) as u64
}

fn time_of(bits: u64, rate: u64) -> Duration {
    if bits == 0 {
        return Duration::ZERO;
    }
    // Rounded up: a packet that is out a nanosecond early would make the link faster than asked.
    Duration::from_nanos((u128::from(bits) * NANOS).div_ceil(u128::from(rate)) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn rate(text: &str) -> Rate {
        text.parse().expect("a test's own rate")
    }

    #[test]
    fn a_link_without_limit_takes_no_time() {
        let free = rate("0");

        assert_eq!(free.finish(ms(5), 1_500), ms(5));
        assert_eq!(free.capacity(ms(0), ms(10)), None);
        assert_eq!(free.peak(), None);
    }

    #[test]
    fn a_packet_takes_its_length_over_the_rate() {
        // 1,500 bytes are 12,000 bits: 12 ms at 1 Mbit/s.
        assert_eq!(rate("1").finish(ms(3), 1_500), ms(15));
    }

    #[test]
    fn a_packet_that_meets_a_change_is_carried_at_both_rates() {
        // 6 ms at 1 Mbit/s carry 6,000 bits; the other 6,000 need 3 ms at 2 Mbit/s.
        let changing = rate("1,2").with_step(ms(10));

        assert_eq!(changing.finish(ms(4), 1_500), ms(13));
    }

    #[test]
    fn a_packet_waits_out_a_standstill() {
        let stopping = rate("0,1").with_step(ms(100));

        assert_eq!(stopping.finish(ms(0), 1_500), ms(112));
    }

    #[test]
    fn the_schedule_repeats() {
        let changing = rate("1,2").with_step(ms(10));

        assert_eq!(
            changing.finish(ms(4), 1_500) + ms(40),
            changing.finish(ms(44), 1_500)
        );
        // 10 ms at each rate, twice: 2 × (10,000 + 20,000) bits.
        assert_eq!(changing.capacity(ms(0), ms(40)), Some(7_500));
        assert_eq!(changing.capacity(ms(5), ms(15)), Some(1_875));
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "fast", "-1", "0,0", "1e9", "NaN"] {
            assert!(text.parse::<Rate>().is_err(), "{text:?} was taken");
        }
    }
}
