//! What the program, and each worker of an edge, runs on.

use std::io;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::time::sleep;

use crate::allocator::Allocator;

/// Build a runtime as `qtunnel` runs on: tokio on one thread.
///
/// On the multi-thread runtime a third of the time goes into waking other threads up and waiting for
/// quinn's connection lock: 12,800 against 20,500 requests a second, measured with a prototype on two
/// cores. An edge scales by workers, each of which has one of these.
///
/// # Errors
/// If the system has no more descriptors.
pub fn runtime() -> io::Result<Runtime> {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .max_io_events_per_tick(EVENTS)
        .build()?;
    // It ends with the runtime.
    runtime.spawn(async {
        loop {
            sleep(RETURN_MEMORY).await;
            Allocator::return_unused();
        }
    });
    Ok(runtime)
}

/// How often memory that is free is returned to the system: well within a minute after a burst, and seldom enough
/// that a busy process hardly notices (some 100 µs each time).
const RETURN_MEMORY: Duration = Duration::from_secs(15);

/// Events of sockets that are handled before packets are sent. The connection's task waits behind all
/// that the events have woken: with no bound, the other end stands still until the last visitor of a crowd
/// was served, and then this one.
const EVENTS: usize = 16;
