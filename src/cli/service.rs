//! Integration with a service manager such as systemd: socket activation, the readiness notification, and an upgrade
//! without downtime on SIGUSR2 (hot restart).

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

use qtunnel::Sockets;
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::task::AbortOnDropHandle;
use tracing::{error, info, warn};

use super::Failure;

/// Take the sockets that the manager has bound and passed (socket activation).
///
/// # Errors
/// [`Failure`] if they cannot be used.
pub fn sockets() -> Result<Sockets, Failure> {
    Sockets::from_service_manager()
        .map_err(|err| Failure::usage(format!("the sockets of LISTEN_FDS cannot be used: {err}")))
}

/// Notify the manager that this process is ready and is the main one: it may have taken over from a predecessor. From
/// then on SIGUSR2 starts a successor, until the returned handle is dropped.
///
/// # Errors
/// [`Failure`] if the signal or the path of the program is not available.
pub fn ready() -> Result<AbortOnDropHandle<()>, Failure> {
    let mut upgrade = signal(SignalKind::user_defined2()).map_err(Failure::running)?;
    // Determined now: once the file has been replaced, the system reports its path as deleted.
    let program = std::env::current_exe().map_err(Failure::running)?;
    let state = [NotifyState::MainPid(std::process::id()), NotifyState::Ready];
    if let Err(err) = sd_notify::notify(&state) {
        warn!(%err, "cannot notify the service manager that the edge is ready");
    }
    let upgrades = tokio::spawn(async move {
        while upgrade.recv().await.is_some() {
            start_successor(&program);
        }
    });
    Ok(AbortOnDropHandle::new(upgrades))
}

/// Start the program again, with the same arguments, to take over from this process.
fn start_successor(program: &Path) {
    let take_over = OsString::from("--take-over");
    let mut args: Vec<_> = std::env::args_os().skip(1).collect();
    if !args.contains(&take_over) {
        args.push(take_over);
    }
    let mut command = Command::new(program);
    command.args(args);
    for name in ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"] {
        command.env_remove(name);
    }
    match command.spawn() {
        Ok(mut child) => {
            info!(pid = child.id(), "starting a successor");
            // The successor should outlive this process; if it ends before, that is logged. The thread ends with
            // either process.
            std::thread::spawn(move || match child.wait() {
                Ok(status) => error!(%status, "the successor has ended"),
                Err(err) => error!(%err, "cannot wait for the successor"),
            });
        }
        Err(err) => error!(%err, program = %program.display(), "cannot start a successor"),
    }
}
