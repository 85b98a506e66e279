//! An emulated network link between two network namespaces.
//!
//! Two TUN devices without offloads (so that every packet is at most one MTU) and one thread that
//! moves packets between them. What happens to a packet on the way is decided by [`path`]; this file
//! only waits, reads, writes, and answers signals: SIGUSR1 cuts the link and mends it again, SIGUSR2
//! prints the counters since they were last printed, SIGTERM and SIGINT print them and end.

mod loss;
mod options;
mod path;
mod rate;
mod stats;
mod tun;

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    io::{self, Write},
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use clap::Parser;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::setpriority_process,
};
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1, SIGUSR2};
use tun_rs::SyncDevice;

use crate::{options::Options, path::Path, stats::Stats};

fn main() -> Result<()> {
    let options = Options::parse();
    let paths = options.paths()?;
    let link = Link {
        ends: [
            tun::open(&options.near, options.mtu)?,
            tun::open(&options.far, options.mtu)?,
        ],
        paths,
        travelling: BinaryHeap::new(),
        sequence: 0,
        latest: Duration::ZERO,
        begun: Instant::now(),
    };
    let signals = Signals::register()?;
    // The link must not starve on a busy machine: a packet late by a scheduling slice is jitter that
    // nobody asked for. Both calls only make it better, so a refusal is not an error.
    let _ = setpriority_process(None, -15);
    let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1));
    println!("link is up");
    link.run(&signals)
}

/// The two ends and everything that is on its way between them.
struct Link {
    ends: [SyncDevice; 2],
    /// `paths[i]` is the direction that begins at `ends[i]`.
    paths: [Path; 2],
    travelling: BinaryHeap<Reverse<Packet>>,
    /// Number of the next packet, which keeps packets that are due together in order.
    sequence: u64,
    /// The longest that a packet came out after it was due.
    latest: Duration,
    begun: Instant,
}

impl Link {
    fn run(mut self, signals: &Signals) -> Result<()> {
        // Larger than any packet that a TUN device without offloads hands over.
        let mut buffer = vec![0; 65_536];
        loop {
            let ends = signals.end.load(Ordering::Relaxed);
            if signals.print.swap(false, Ordering::Relaxed) || ends {
                self.print_stats()?;
            }
            if ends {
                return Ok(());
            }
            self.deliver();
            if !self.admit(&mut buffer, signals)? {
                self.wait()?;
            }
        }
    }

    /// Write out every packet that is due.
    fn deliver(&mut self) {
        let now = self.begun.elapsed();
        while let Some(Reverse(packet)) = self.travelling.peek() {
            if packet.due > now {
                break;
            }
            self.latest = self.latest.max(now - packet.due);
            // A kernel queue that is full drops the packet, as a network card would.
            let _ = self.ends[1 - packet.from].send(&packet.bytes);
            self.travelling.pop();
        }
    }

    /// Read what both ends have sent; report whether there was anything.
    fn admit(&mut self, buffer: &mut [u8], signals: &Signals) -> Result<bool> {
        // So many packets from one end before the other end and the packets due have their turn.
        const BATCH: usize = 32;
        let mut any = false;
        for from in 0..2 {
            for _ in 0..BATCH {
                let length = match self.ends[from].recv(buffer) {
                    Ok(length) => length,
                    Err(err) if err.kind() == io::ErrorKind::WouldBlock => break,
                    Err(err) => return Err(err).context("cannot read from the TUN device"),
                };
                any = true;
                let now = self.begun.elapsed();
                if signals.cut.load(Ordering::Relaxed) {
                    self.paths[from].refuse(length);
                    continue;
                }
                let fate = self.paths[from].admit(now, length);
                for copy in fate.copies.into_iter().flatten() {
                    let mut bytes: Box<[u8]> = buffer[..length].into();
                    if let Some(bit) = copy.flipped_bit {
                        bytes[bit / 8] ^= 1 << (bit % 8);
                    }
                    self.sequence += 1;
                    self.travelling.push(Reverse(Packet {
                        due: copy.due,
                        sequence: self.sequence,
                        from,
                        bytes,
                    }));
                }
            }
        }
        Ok(any)
    }

    /// Sleep until a packet is due, one arrives, or a signal may have come.
    fn wait(&self) -> Result<()> {
        // A signal between the check and the poll is noticed this much later at worst.
        const LONGEST: Duration = Duration::from_millis(100);
        let now = self.begun.elapsed();
        let next = self.travelling.peek().map_or(LONGEST, |Reverse(packet)| {
            packet.due.saturating_sub(now).min(LONGEST)
        });
        let timeout = Timespec::try_from(next).context("a tenth of a second fits a timespec")?;
        let mut ends = self
            .ends
            .each_ref()
            .map(|end| PollFd::from_borrowed_fd(end.as_fd(), PollFlags::IN));
        match poll(&mut ends, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(err) => Err(err).context("cannot wait for packets"),
        }
    }

    /// Print the counters of both directions on one line and start them afresh.
    fn print_stats(&mut self) -> Result<()> {
        let now = self.begun.elapsed();
        let mut line = String::from("stats");
        for (path, name) in self.paths.iter_mut().zip(["a2b", "b2a"]) {
            let stats: Stats = path.take_stats(now);
            line += &stats.fields(name);
        }
        let latest = std::mem::take(&mut self.latest);
        line += &format!(" late_max_us={}", latest.as_micros());
        let mut out = io::stdout().lock();
        writeln!(out, "{line}")
            .and_then(|()| out.flush())
            .context("cannot print the counters")
    }
}

/// A packet on its way; ordered by when it comes out.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Packet {
    due: Duration,
    sequence: u64,
    /// The end where it entered.
    from: usize,
    bytes: Box<[u8]>,
}

/// What the signals have asked for.
struct Signals {
    cut: Arc<AtomicBool>,
    print: Arc<AtomicBool>,
    end: Arc<AtomicBool>,
}

impl Signals {
    fn register() -> Result<Self> {
        let signals = Self {
            cut: Arc::default(),
            print: Arc::default(),
            end: Arc::default(),
        };
        let cut = signals.cut.clone();
        // SAFETY: the action only touches an atomic, which a signal handler may.
        unsafe {
            signal_hook::low_level::register(SIGUSR1, move || {
                cut.fetch_xor(true, Ordering::Relaxed);
            })?;
        }
        signal_hook::flag::register(SIGUSR2, signals.print.clone())?;
        signal_hook::flag::register(SIGTERM, signals.end.clone())?;
        signal_hook::flag::register(SIGINT, signals.end.clone())?;
        Ok(signals)
    }
}
