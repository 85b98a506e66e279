//! Visitors and agents that mean harm, all from one address: they take what an edge gives to anybody, and hold it
//! as long as they can. Whoever is sent away comes back.

mod handshakes;
mod hold;
mod http2;
mod tls;

use std::sync::Arc;

use anyhow::Result;
use clap::Parser;

/// Visitors and agents that mean harm.
#[derive(Debug, Parser)]
enum Command {
    /// Bring connections into a state and leave them there; prints `attacking` once each has been tried
    Hold(hold::Options),
    /// Begin QUIC handshakes and never finish them; prints so many per second
    Handshakes(handshakes::Options),
}

fn main() -> Result<()> {
    // One thread: what is measured shall have the other core.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    match Command::parse() {
        Command::Hold(options) => runtime.block_on(hold::run(Arc::new(options))),
        Command::Handshakes(options) => runtime.block_on(handshakes::run(&options)),
    }
}
