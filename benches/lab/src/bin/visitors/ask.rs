//! Visitors who ask at fixed times.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Result;
use clap::Args;
use tokio::{
    io::AsyncReadExt,
    task::JoinSet,
    time::{interval, timeout},
};

use crate::Place;

#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    place: Place,
    #[arg(long)]
    seconds: u32,
}

/// Ask for a kilobyte so often, and print median and p99 in milliseconds. What is not answered counts
/// as long as is waited for it.
pub async fn run(options: Arc<Options>) -> Result<()> {
    let mut times = interval(Duration::from_secs(1) / PER_SECOND);
    let mut asked = JoinSet::new();
    for visitor in 0..options.seconds * PER_SECOND {
        times.tick().await;
        let options = options.clone();
        asked.spawn(async move {
            let begun = Instant::now();
            match timeout(PATIENCE, options.ask(visitor as usize)).await {
                Ok(Ok(true)) => (begun.elapsed(), true),
                _ => (PATIENCE, false),
            }
        });
    }
    let (mut took, mut errors) = (Vec::new(), 0);
    for (time, answered) in asked.join_all().await {
        took.push(time);
        errors += u32::from(!answered);
    }
    took.sort();
    let quantile =
        |percent: usize| took[(took.len() * percent).div_ceil(100) - 1].as_secs_f64() * 1e3;
    let (p50, p99) = (quantile(50), quantile(99));
    println!(
        "requests={} errors={errors} p50_ms={p50:.3} p99_ms={p99:.3}",
        took.len()
    );
    Ok(())
}

impl Options {
    /// Report whether there was an answer, to its end.
    async fn ask(&self, visitor: usize) -> Result<bool> {
        let mut tcp = self.place.connect(None).await?;
        let asked = self
            .place
            .ask(visitor, &mut tcp, "/bytes/1024", "Connection: close\r\n");
        let status = asked.await?;
        let mut body = Vec::new();
        tcp.read_to_end(&mut body).await?;
        Ok(status == 200 && body.len() == 1024)
    }
}

/// Requests.
const PER_SECOND: u32 = 100;

/// How long a request may take.
const PATIENCE: Duration = Duration::from_secs(5);
