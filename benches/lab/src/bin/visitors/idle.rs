//! Connections that are upgraded, used once, and then silent.

use std::{future::pending, sync::Arc};

use anyhow::{Context, Result, ensure};
use clap::Args;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Semaphore,
    task::JoinSet,
    time::timeout,
};

use crate::{ARRIVAL, ARRIVING, Place};

#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    place: Place,
    #[arg(long)]
    visitors: usize,
}

/// Open all connections and keep them until killed.
pub async fn run(options: Arc<Options>) -> Result<()> {
    let (arriving, mut tasks) = (Arc::new(Semaphore::new(ARRIVING)), JoinSet::new());
    for visitor in 0..options.visitors {
        let (options, arriving) = (options.clone(), arriving.clone());
        tasks.spawn(async move {
            let _turn = arriving.acquire().await;
            options.open(visitor).await
        });
    }
    let mut open = Vec::new();
    let all = async {
        while let Some(opened) = tasks.join_next().await {
            open.push(opened??);
        }
        anyhow::Ok(())
    };
    let arrived = timeout(ARRIVAL, all).await;
    arrived.with_context(|| format!("only {} were opened in time", open.len()))??;
    println!("all are open");
    pending().await
}

impl Options {
    async fn open(&self, visitor: usize) -> Result<TcpStream> {
        const UPGRADE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\n";
        let mut tcp = self.place.connect(None).await?;
        let status = self.place.ask(visitor, &mut tcp, "/echo", UPGRADE).await?;
        ensure!(status == 101, "no upgrade, but status {status}");
        let (message, mut echo) = ([b'm'; 64], [0; 64]);
        tcp.write_all(&message).await?;
        tcp.read_exact(&mut echo).await?;
        ensure!(echo == message, "not what was sent came back");
        Ok(tcp)
    }
}
