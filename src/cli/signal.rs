//! Signals: the first one drains, the second one ends the program at once.

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::Failure;

/// Begin to listen for SIGINT and SIGTERM. The returned future ends at the first; the second ends
/// the process.
///
/// # Errors
/// If the system refuses a handler.
pub fn shutdown() -> Result<impl Future<Output = ()>, Failure> {
    let mut signals = Signals {
        interrupt: signal(SignalKind::interrupt()).map_err(Failure::running)?,
        terminate: signal(SignalKind::terminate()).map_err(Failure::running)?,
    };
    Ok(async move {
        signals.next().await;
        eprintln!("qtunnel: stopping once what is under way has ended (again to stop at once)");
        // Nobody waits for it: it ends with the process.
        tokio::spawn(async move {
            signals.next().await;
            std::process::exit(1);
        });
    })
}

struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
