//! Visitors that read slowly.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Result, ensure};
use clap::Args;
use tokio::{
    io::AsyncReadExt,
    sync::Semaphore,
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep, timeout},
};

use crate::{ARRIVAL, ARRIVING, Place};

#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    place: Place,
    #[arg(long)]
    visitors: usize,
    /// Bytes per second of each
    #[arg(long)]
    rate: usize,
    /// What each asks for
    #[arg(long, default_value = "/bytes/100000000")]
    target: String,
    /// How long to read; the second half of it counts
    #[arg(long)]
    seconds: u64,
}

/// Read, then print how many visitors got at least half of what they would have read.
pub async fn run(options: Arc<Options>) -> Result<()> {
    let read: Vec<_> = (0..options.visitors)
        .map(|_| Arc::new(AtomicU64::new(0)))
        .collect();
    let (arriving, mut tasks) = (Arc::new(Semaphore::new(ARRIVING)), JoinSet::new());
    for (visitor, read) in read.iter().cloned().enumerate() {
        let (options, arriving) = (options.clone(), arriving.clone());
        tasks.spawn(async move {
            // Whoever fails is not served, which the count says.
            if let Err(err) = options.read(visitor, &read, &arriving).await {
                eprintln!("visitor {visitor}: {err:#}");
            }
        });
    }
    let half = Duration::from_secs(options.seconds) / 2;
    sleep(half).await;
    let before: Vec<_> = read
        .iter()
        .map(|read| read.load(Ordering::Relaxed))
        .collect();
    sleep(half).await;
    let enough = (options.rate as f64 * half.as_secs_f64() / 2.0) as u64;
    let served = read.iter().zip(before);
    let served = served.filter(|(now, before)| now.load(Ordering::Relaxed) - before >= enough);
    println!("served={}", served.count());
    Ok(())
}

impl Options {
    async fn read(&self, visitor: usize, read: &AtomicU64, arriving: &Semaphore) -> Result<()> {
        let mut tcp = {
            let _turn = arriving.acquire().await;
            let mut tcp = self.place.connect(Some(RECEIVE_BUFFER)).await?;
            let asked = self.place.ask(visitor, &mut tcp, &self.target, "");
            let status = timeout(ARRIVAL, asked).await??;
            ensure!(status == 200, "status {status}");
            tcp
        };
        let mut bite = vec![0; self.rate / BITES];
        let mut times = interval(Duration::from_secs(1) / BITES as u32);
        times.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            times.tick().await;
            let bytes = tcp.read(&mut bite).await?;
            ensure!(bytes > 0, "the body ended");
            read.fetch_add(bytes as u64, Ordering::Relaxed);
        }
    }
}

/// Reads per second.
const BITES: usize = 10;

/// Small: what is on the way shall wait at the tunnel's end, not in the visitor's kernel.
const RECEIVE_BUFFER: u32 = 16 << 10;
