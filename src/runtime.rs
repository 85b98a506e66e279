//! Runtime of the program, and of each worker of an edge.

use std::io;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::time::sleep;

use crate::allocator::Allocator;

/// Build the runtime that `qtunnel` uses: tokio on one thread.
///
/// The multi-thread runtime spends a third of its time on waking other threads and waiting for
/// quinn's connection lock: 12,800 against 20,500 requests/s, measured with a prototype on two
/// cores. An edge scales by workers, each of which has one of these.
///
/// # Errors
/// If the system has no more file descriptors.
pub fn runtime() -> io::Result<Runtime> {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .max_io_events_per_tick(MAX_EVENTS_PER_TICK)
        .build()?;
    // The task ends with the runtime.
    runtime.spawn(async {
        loop {
            sleep(MEMORY_RETURN_INTERVAL).await;
            Allocator::return_unused();
        }
    });
    Ok(runtime)
}

/// Interval at which free memory is returned to the system: well within a minute after a burst, and
/// so rarely that a busy process hardly notices (some 100 µs each time).
const MEMORY_RETURN_INTERVAL: Duration = Duration::from_secs(15);

/// Socket events handled before packets are sent. The connection's task waits behind everything
/// that the events have woken: without a bound, the other end would be idle until the last of many
/// visitors was served.
const MAX_EVENTS_PER_TICK: usize = 16;
