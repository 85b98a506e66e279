//! Shutdown signals: the first one starts a graceful shutdown, the second one ends the program at once.
//!
//! They are handled on a thread of their own: the main thread may be blocked, for example in a write to a terminal that
//! has been stopped, and the second signal must end the program nevertheless.

use std::io;
use std::thread;

#[cfg(unix)]
use tokio::signal::unix::Signal;
#[cfg(unix)]
use tokio::signal::unix::SignalKind;
#[cfg(unix)]
use tokio::signal::unix::signal;
#[cfg(windows)]
use tokio::signal::windows::{CtrlBreak, CtrlC, CtrlClose, CtrlShutdown};
#[cfg(windows)]
use tokio::signal::windows::{ctrl_break, ctrl_c, ctrl_close, ctrl_shutdown};
use tokio::sync::oneshot;

use super::Failure;

/// Install handlers for SIGINT and SIGTERM, or for the equivalents of a Windows console. The returned future resolves
/// at the first signal; the second one ends the process.
///
/// # Errors
/// [`Failure`] if the system refuses a handler or a thread.
pub fn shutdown() -> Result<impl Future<Output = ()>, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .map_err(Failure::running)?;
    let mut signals = {
        let _entered = runtime.enter();
        Signals::listen().map_err(Failure::running)?
    };
    let (first, stopped) = oneshot::channel();
    let watch = move || {
        runtime.block_on(async move {
            signals.next().await;
            // Fails if the program is already ending by itself.
            let _ = first.send(());
            announce();
            signals.next().await;
            std::process::exit(1);
        });
    };
    // The thread ends with the process.
    thread::Builder::new()
        .name("signals".into())
        .spawn(watch)
        .map_err(Failure::running)?;
    Ok(async move {
        if stopped.await.is_err() {
            std::future::pending::<()>().await;
        }
    })
}

/// Print that the signal was received, on a thread that is not joined: stderr may block.
fn announce() {
    let print = || {
        eprintln!("qtunnel: stopping once open conversations have ended (again to stop at once)")
    };
    let _: io::Result<_> = thread::Builder::new().spawn(print);
}

#[cfg(unix)]
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

#[cfg(unix)]
impl Signals {
    /// Install the handlers.
    fn listen() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    /// Wait for the next signal.
    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// The events of a Windows console: Ctrl-C, Ctrl-Break, closing the window, and shutdown. After the last two the system
/// waits some seconds for this process.
#[cfg(windows)]
struct Signals {
    interrupt: CtrlC,
    r#break: CtrlBreak,
    close: CtrlClose,
    shutdown: CtrlShutdown,
}

#[cfg(windows)]
impl Signals {
    /// Install the handlers.
    fn listen() -> io::Result<Self> {
        Ok(Self {
            interrupt: ctrl_c()?,
            r#break: ctrl_break()?,
            close: ctrl_close()?,
            shutdown: ctrl_shutdown()?,
        })
    }

    /// Wait for the next signal.
    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.r#break.recv() => {}
            _ = self.close.recv() => {}
            _ = self.shutdown.recv() => {}
        }
    }
}
