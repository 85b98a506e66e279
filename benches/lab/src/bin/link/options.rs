//! The command line of the link: raw numbers in, two [`Path`]s out.

use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Parser;

use crate::{
    loss::Loss,
    path::{Path, Shape},
    rate::Rate,
    tun::End,
};

/// An emulated network link between two network namespaces, which must exist.
///
/// Times are in milliseconds, rates in Mbit/s, probabilities between 0 and 1. What is not told apart
/// holds for both directions.
#[derive(Debug, Parser)]
pub struct Options {
    /// One end, NAMESPACE=ADDRESS/PREFIX.
    #[arg(long = "a", value_name = "END")]
    pub near: End,
    /// The other end.
    #[arg(long = "b", value_name = "END")]
    pub far: End,
    #[arg(long, default_value_t = 1_500, value_parser = clap::value_parser!(u16).range(576..))]
    pub mtu: u16,
    /// One-way delay.
    #[arg(long, default_value_t = 0.0)]
    delay_ms: f64,
    /// Up to this much more one-way delay, evenly distributed; the order is kept.
    #[arg(long, default_value_t = 0.0)]
    jitter_ms: f64,
    /// Independent loss, or LOSS,LENGTH for bursts of LENGTH packets on average.
    #[arg(long, default_value = "0")]
    loss: Loss,
    /// 0 for no limit; several, separated by commas, are used in turn and repeated.
    #[arg(long, default_value = "0")]
    rate_mbit: Rate,
    /// Another rate for packets from b to a.
    #[arg(long)]
    back_rate_mbit: Option<Rate>,
    /// How long each of several rates lasts.
    #[arg(long, default_value_t = 1_000.0)]
    rate_step_ms: f64,
    /// The queue in front of the link, in time at the (highest) rate.
    #[arg(long, default_value_t = 100.0)]
    queue_ms: f64,
    /// Probability that a packet is held back and overtaken.
    #[arg(long, default_value_t = 0.0)]
    reorder: f64,
    /// How long it is held back.
    #[arg(long, default_value_t = 5.0)]
    hold_ms: f64,
    /// Probability that a packet comes out twice.
    #[arg(long, default_value_t = 0.0)]
    duplicate: f64,
    /// Probability that one bit of a packet is flipped.
    #[arg(long, default_value_t = 0.0)]
    corrupt: f64,
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

impl Options {
    /// The two directions, from a to b and back.
    pub fn paths(&self) -> Result<[Path; 2]> {
        let step = milliseconds("--rate-step-ms", self.rate_step_ms)?;
        ensure!(!step.is_zero(), "--rate-step-ms must be above 0");
        let there = Shape {
            rate: self.rate_mbit.clone().with_step(step),
            queue: milliseconds("--queue-ms", self.queue_ms)?,
            delay: milliseconds("--delay-ms", self.delay_ms)?,
            jitter: milliseconds("--jitter-ms", self.jitter_ms)?,
            loss: self.loss.clone(),
            reorder: probability("--reorder", self.reorder)?,
            hold: milliseconds("--hold-ms", self.hold_ms)?,
            duplicate: probability("--duplicate", self.duplicate)?,
            corrupt: probability("--corrupt", self.corrupt)?,
            seed: self.seed.wrapping_mul(2),
        };
        let back_rate = self.back_rate_mbit.as_ref().unwrap_or(&self.rate_mbit);
        let back = Shape {
            rate: back_rate.clone().with_step(step),
            // The directions lose different packets.
            seed: there.seed.wrapping_add(1),
            ..there.clone()
        };
        Ok([Path::new(there), Path::new(back)])
    }
}

fn milliseconds(option: &str, value: f64) -> Result<Duration> {
    // An hour; beyond it the arithmetic would still hold, but nobody means it.
    const LONGEST: f64 = 3_600_000.0;
    ensure!(
        (0.0..=LONGEST).contains(&value),
        "{option} lies between 0 and {LONGEST} ms, not {value}"
    );
    Ok(Duration::from_secs_f64(value / 1e3))
}

fn probability(option: &str, value: f64) -> Result<f64> {
    ensure!(
        (0.0..=1.0).contains(&value),
        "{option} lies between 0 and 1, not {value}"
    );
    Ok(value)
}
