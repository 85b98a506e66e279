//! How fast packets come, and so how many of them may share a TLS record.

use std::time::{Duration, Instant};

/// How fast packets have come of late.
pub(crate) struct Pace {
    since: Instant,
    /// Bytes that have come since then.
    bytes: usize,
    /// Bytes that come in the time of a [`RECORD`], by the best that came before; half as many each [`PACE`].
    pub(crate) in_a_record: usize,
}

impl Pace {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            since: now,
            bytes: 0,
            in_a_record: 0,
        }
    }

    pub(crate) fn note(&mut self, bytes: usize, now: Instant) {
        self.bytes += bytes;
        let elapsed = now.saturating_duration_since(self.since);
        if elapsed >= PACE {
            let records = elapsed.div_duration_f64(RECORD);
            let halvings = elapsed.div_duration_f64(PACE) as u32;
            // TCP brings nothing while it repeats what was lost, and that does not make a path slow.
            let before = self.in_a_record.checked_shr(halvings).unwrap_or(0);
            self.in_a_record = before.max((self.bytes as f64 / records) as usize);
            (self.since, self.bytes) = (now, 0);
        }
    }
}

/// For how long what is written at once keeps the path busy, between these bounds. None of a TLS record can be
/// read before its end has come: at 1 Mbit/s one of 16 KiB makes the first packet in it wait for 0.13 s.
const RECORD: Duration = Duration::from_millis(5);

/// Over which time the pace is measured.
const PACE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_travel_alone_on_a_slow_path_and_together_on_a_fast_one() {
        let start = Instant::now();
        let ms = Duration::from_millis;
        let mut pace = Pace::new(start);

        pace.note(1_400, start + ms(1));
        assert_eq!(pace.in_a_record, 0, "nothing is known yet");
        pace.note(12_600, start + ms(100));
        assert_eq!(pace.in_a_record, 700);
        pace.note(625_000, start + ms(200));
        assert_eq!(pace.in_a_record, 31_250);
        pace.note(1_400, start + ms(300));
        assert_eq!(pace.in_a_record, 15_625, "a stall is over soon");
        pace.note(1_400, start + ms(60_000));
        assert_eq!(pace.in_a_record, 0);
    }
}
