//! Signals: the first one drains, the second one ends the program at once.

#[cfg(unix)]
use tokio::signal::unix::{Signal, SignalKind, signal};
#[cfg(windows)]
use tokio::signal::windows::{CtrlBreak, CtrlC, CtrlClose, CtrlShutdown};
#[cfg(windows)]
use tokio::signal::windows::{ctrl_break, ctrl_c, ctrl_close, ctrl_shutdown};

use tokio_util::task::AbortOnDropHandle;

use super::Failure;

/// Begin to listen for SIGINT and SIGTERM, or what a Windows console has instead. The returned future ends at the first; the second ends
/// the process.
///
/// # Errors
/// If the system refuses a handler.
pub fn shutdown() -> Result<impl Future<Output = ()>, Failure> {
    let mut signals = Signals::listen().map_err(Failure::running)?;
    // A task of its own: who waits for this also waits for much else, and asks for it each time.
    let first = AbortOnDropHandle::new(tokio::spawn(async move {
        signals.next().await;
        eprintln!("qtunnel: stopping once what is under way has ended (again to stop at once)");
        // Nobody waits for it: it ends with the process.
        tokio::spawn(async move {
            signals.next().await;
            std::process::exit(1);
        });
    }));
    Ok(async move {
        // It neither panics nor is aborted while somebody waits for it.
        let _ = first.await;
    })
}

#[cfg(unix)]
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

#[cfg(unix)]
impl Signals {
    fn listen() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// Ctrl-C and Ctrl-Break, and that the window is closed or the machine shut down: the system then waits some
/// seconds for this process.
#[cfg(windows)]
struct Signals {
    interrupt: CtrlC,
    r#break: CtrlBreak,
    close: CtrlClose,
    shutdown: CtrlShutdown,
}

#[cfg(windows)]
impl Signals {
    fn listen() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: ctrl_c()?,
            r#break: ctrl_break()?,
            close: ctrl_close()?,
            shutdown: ctrl_shutdown()?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.r#break.recv() => {}
            _ = self.close.recv() => {}
            _ = self.shutdown.recv() => {}
        }
    }
}
