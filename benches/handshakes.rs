//! Handshakes that never finish, for `scripts/bench scale`: so many a second, from as many addresses of this
//! machine as it is told, 127.0.0.1 and those after it.

use std::error::Error;
use std::net::{Ipv4Addr, SocketAddr};
use std::thread::sleep;
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
    let mut begun = 0_u64;
    while start.elapsed() < length {
        let due = start.elapsed().as_secs_f64() * f64::from(options.rate);
        while (begun as f64) < due && start.elapsed() < length {
            let turn = begun as usize % clients.len();
            clients[turn].begin()?;
            begun += 1;
        }
        clients.iter_mut().for_each(Handshakes::follow);
        sleep(TICK);
    }
    println!("{begun} handshakes begun in {:.1} s", start.elapsed().as_secs_f64());
    Ok(())
}

/// Between looks at the clock.
const TICK: Duration = Duration::from_millis(1);
