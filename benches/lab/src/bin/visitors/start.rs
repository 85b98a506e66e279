//! One visitor who asks again and again until somebody answers.

use std::{
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::Args;
use tokio::time::{sleep, timeout};

use crate::Place;

#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    place: Place,
    /// Be content with any status, not only 200
    #[arg(long)]
    any: bool,
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// Run the command, print the milliseconds to the first answer, and end the command.
pub async fn run(options: &Options) -> Result<()> {
    let begun = Instant::now();
    let _child = Ended(
        Command::new(&options.command[0])
            .args(&options.command[1..])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot run {}", options.command[0]))?,
    );
    // A request that an edge swallowed before the tunnel was up must not be waited for.
    while !matches!(timeout(PATIENCE, options.is_answered()).await, Ok(Ok(true))) {
        ensure!(begun.elapsed() < LIMIT, "nobody answered in time");
        sleep(PAUSE).await;
    }
    println!("{:.1}", begun.elapsed().as_secs_f64() * 1e3);
    Ok(())
}

impl Options {
    async fn is_answered(&self) -> Result<bool> {
        let mut tcp = self.place.connect(None).await?;
        let asked = self
            .place
            .ask(0, &mut tcp, "/bytes/2", "Connection: close\r\n");
        let status = asked.await?;
        Ok(status == 200 || self.any)
    }
}

/// A process that is ended when it is dropped.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // It fails only if the process has ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// How long one request may take.
const PATIENCE: Duration = Duration::from_millis(100);

/// Between two requests.
const PAUSE: Duration = Duration::from_millis(1);

/// How long the whole start may take.
const LIMIT: Duration = Duration::from_secs(20);
