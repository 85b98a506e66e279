//! Dynamic TLS record sizing: the rate of packets determines how many of them share a TLS record.

use std::time::{Duration, Instant};

/// Estimates the recent rate of packets, and from it the size of a TLS record.
pub(crate) struct RecordSizer {
    /// The start of the current measurement.
    since: Instant,
    /// Bytes since then.
    bytes: usize,
    /// Bytes per [`RECORD_DURATION`] at the best recent rate. An old value halves every [`MEASURE_INTERVAL`].
    pub(crate) bytes_per_record: usize,
}

impl RecordSizer {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            since: now,
            bytes: 0,
            bytes_per_record: 0,
        }
    }

    /// Record bytes that are queued for sending.
    pub(crate) fn note(&mut self, bytes: usize, now: Instant) {
        self.bytes += bytes;
        let elapsed = now.saturating_duration_since(self.since);
        if elapsed >= MEASURE_INTERVAL {
            let records = elapsed.div_duration_f64(RECORD_DURATION);
            let halvings = elapsed.div_duration_f64(MEASURE_INTERVAL) as u32;
            // Packets stop while TCP retransmits a lost segment; that does not make the path slow.
            let before = self.bytes_per_record.checked_shr(halvings).unwrap_or(0);
            self.bytes_per_record = before.max((self.bytes as f64 / records) as usize);
            (self.since, self.bytes) = (now, 0);
        }
    }
}

/// The time for which one write should keep the path busy. A TLS record can be decrypted only once all of it has
/// arrived: at 1 Mbit/s, a record of 16 KiB delays the first packet in it by 0.13 s.
const RECORD_DURATION: Duration = Duration::from_millis(5);

/// The interval over which the rate is measured.
const MEASURE_INTERVAL: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_travel_alone_on_a_slow_path_and_together_on_a_fast_one() {
        let start = Instant::now();
        let ms = Duration::from_millis;
        let mut record_sizer = RecordSizer::new(start);

        record_sizer.note(1_400, start + ms(1));
        assert_eq!(record_sizer.bytes_per_record, 0, "nothing is known yet");
        record_sizer.note(12_600, start + ms(100));
        assert_eq!(record_sizer.bytes_per_record, 700);
        record_sizer.note(625_000, start + ms(200));
        assert_eq!(record_sizer.bytes_per_record, 31_250);
        record_sizer.note(1_400, start + ms(300));
        assert_eq!(
            record_sizer.bytes_per_record, 15_625,
            "a stall is over soon"
        );
        record_sizer.note(1_400, start + ms(60_000));
        assert_eq!(record_sizer.bytes_per_record, 0);
    }
}
