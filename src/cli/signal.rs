//! Signals: the first one drains, the second one ends the program at once.
//!
//! They are waited for on a thread of their own. The program's own thread may be stuck, in a write to a
//! terminal that has been stopped for example, and the second signal must end it all the same.

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

/// Begin to listen for SIGINT and SIGTERM, or what a Windows console has instead. The returned future ends at the
/// first; the second ends the process.
///
/// # Errors
/// If the system refuses a handler or a thread.
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
            // Nobody waits for it any more if the program ends by itself.
            let _ = first.send(());
            announce();
            signals.next().await;
            std::process::exit(1);
        });
    };
    // It ends with the process.
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

/// Say that the signal was heard, on a thread that nobody waits for: stderr may be stuck.
fn announce() {
    let say =
        || eprintln!("qtunnel: stopping once what is under way has ended (again to stop at once)");
    let _: io::Result<_> = thread::Builder::new().spawn(say);
}

#[cfg(unix)]
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

#[cfg(unix)]
impl Signals {
    fn listen() -> io::Result<Self> {
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
    fn listen() -> io::Result<Self> {
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
