//! Which packets the link loses: each by itself, or in bursts (the Gilbert-Elliott model).

use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};
use fastrand::Rng;

/// A two-state Markov chain: in the bad state every packet is lost with one probability, in the good
/// state with another. Independent loss is the chain that never leaves the good state.
#[derive(Clone, Debug)]
pub struct Loss {
    /// Probability, per packet, of going from good to bad.
    worsens: f64,
    /// Probability, per packet, of going from bad to good.
    recovers: f64,
    when_bad: f64,
    when_good: f64,
    bad: bool,
}

impl Loss {
    /// Lose each packet with `probability`, whatever happened to the one before.
    pub fn independent(probability: f64) -> Self {
        Self {
            worsens: 0.0,
            recovers: 0.0,
            when_bad: 0.0,
            when_good: probability,
            bad: false,
        }
    }

    /// Lose a share `mean` of the packets, in bursts of `length` packets on average.
    pub fn in_bursts(mean: f64, length: f64) -> Self {
        // A burst ends with probability r at each packet, so it lasts 1/r. The share of time in the
        // bad state is p/(p+r); solved for p it gives the mean.
        let recovers = 1.0 / length;
        Self {
            worsens: mean * recovers / (1.0 - mean),
            recovers,
            when_bad: 1.0,
            when_good: 0.0,
            bad: false,
        }
    }

    /// Decide about the next packet.
    pub fn loses(&mut self, rng: &mut Rng) -> bool {
        let flips = if self.bad {
            self.recovers
        } else {
            self.worsens
        };
        if happens(flips, rng) {
            self.bad = !self.bad;
        }
        happens(
            if self.bad {
                self.when_bad
            } else {
                self.when_good
            },
            rng,
        )
    }
}

impl FromStr for Loss {
    type Err = anyhow::Error;

    /// Parse `0.03` (independent) or `0.03,5` (bursts of five).
    fn from_str(text: &str) -> Result<Self> {
        let mut numbers = Vec::new();
        for word in text.split(',') {
            numbers.push(
                word.parse()
                    .with_context(|| format!("{word:?} is not a number"))?,
            );
        }
        match numbers[..] {
            [mean] => {
                ensure!((0.0..=1.0).contains(&mean), "a loss lies between 0 and 1");
                Ok(Self::independent(mean))
            }
            [mean, length] => {
                ensure!(
                    (0.0..1.0).contains(&mean),
                    "a mean loss lies between 0 and 1"
                );
                ensure!(length >= 1.0, "a burst is at least one packet long");
                Ok(Self::in_bursts(mean, length))
            }
            _ => bail!("expected LOSS or LOSS,BURST-LENGTH"),
        }
    }
}

/// Decide whether something of this probability happens; draws nothing for what never does.
pub fn happens(probability: f64, rng: &mut Rng) -> bool {
    probability > 0.0 && rng.f64() < probability
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACKETS: usize = 400_000;

    /// The share of packets lost, and how many there are to a burst.
    fn observe(mut loss: Loss) -> (f64, f64) {
        let mut rng = Rng::with_seed(7);
        let (mut lost, mut bursts, mut before) = (0, 0, false);
        for _ in 0..PACKETS {
            let now = loss.loses(&mut rng);
            lost += usize::from(now);
            bursts += usize::from(now && !before);
            before = now;
        }
        (
            lost as f64 / PACKETS as f64,
            lost as f64 / bursts.max(1) as f64,
        )
    }

    #[test]
    fn no_loss_loses_nothing() {
        assert_eq!(observe(Loss::independent(0.0)), (0.0, 0.0));
    }

    #[test]
    fn independent_loss_has_the_asked_share_and_no_bursts() {
        let (share, length) = observe(Loss::independent(0.03));

        assert!((share - 0.03).abs() < 0.002, "lost {share}");
        // By chance alone a loss follows a loss three times in a hundred.
        assert!((length - 1.03).abs() < 0.02, "bursts of {length}");
    }

    #[test]
    fn burst_loss_has_the_asked_share_and_length() {
        let (share, length) = observe(Loss::in_bursts(0.03, 5.0));

        assert!((share - 0.03).abs() < 0.003, "lost {share}");
        assert!((length - 5.0).abs() < 0.2, "bursts of {length}");
    }

    #[test]
    fn the_same_seed_loses_the_same_packets() {
        let run = || {
            let (mut loss, mut rng) = (Loss::in_bursts(0.1, 3.0), Rng::with_seed(3));
            (0..1_000).map(|_| loss.loses(&mut rng)).collect::<Vec<_>>()
        };

        assert_eq!(run(), run());
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "x", "1.5", "-0.1", "0.1,0.5", "1,5", "0.1,2,3"] {
            assert!(text.parse::<Loss>().is_err(), "{text:?} was taken");
        }
    }
}
