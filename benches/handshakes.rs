//! Handshakes that never finish, for `scripts/bench scale`: so many a second, from as many addresses of this
//! machine as it is told, 127.0.0.1 and those after it.

use std::error::Error;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use clap::Parser;

use self::handshakes::{Handshakes, OnRetry};

#[path = "../tests/e2e/lab/handshakes.rs"]
mod handshakes;

/// Begin handshakes and finish none of them.
#[derive(Parser)]
struct Options {
    /// The edge's UDP address
    #[arg(long)]
    to: SocketAddr,
    /// Handshakes a second
    #[arg(long)]
    rate: u32,
    #[arg(long)]
    seconds: u64,
    /// Loopback addresses to begin from, in turns
    #[arg(long, default_value = "1")]
    addresses: u32,
    /// Bring the token when the edge asks for a proof of address
    #[arg(long)]
    follow_retry: bool,
}

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::parse();
    let on_retry = match options.follow_retry {
        true => OnRetry::Follow,
        false => OnRetry::Ignore,
    };
    let first = u32::from(Ipv4Addr::LOCALHOST);
    let mut clients = (first..first + options.addresses)
        .map(|from| Handshakes::new(from.into(), options.to, on_retry))
        .collect::<Result<Vec<_>, _>>()?;
    let (start, length) = (Instant::now(), Duration::from_secs(options.seconds));
    let begun = handshakes::flood(&mut clients, options.rate, || start.elapsed() < length)?;
    let seconds = start.elapsed().as_secs_f64();
    println!("{begun} handshakes begun in {seconds:.1} s");
    Ok(())
}
