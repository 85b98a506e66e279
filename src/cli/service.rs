//! What the edge and a service manager such as systemd have to do with each other: sockets that the
//! manager has bound, word that the edge is ready, and an upgrade in place on SIGUSR2.

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

use qtunnel::Sockets;
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::task::AbortOnDropHandle;
use tracing::{error, info, warn};

use super::Failure;

/// Take the sockets that the manager passes.
pub fn sockets() -> Result<Sockets, Failure> {
    Sockets::from_service_manager()
        .map_err(|err| Failure::usage(format!("the sockets of LISTEN_FDS cannot be used: {err}")))
}

/// Tell the manager that this process is ready, and the one to look after: it may have taken over
/// from that one's predecessor. From then on SIGUSR2 starts a successor, until the returned value is
/// dropped.
pub fn ready() -> Result<AbortOnDropHandle<()>, Failure> {
    let mut upgrade = signal(SignalKind::user_defined2()).map_err(Failure::running)?;
    // Before anybody replaces the file, after which the system calls it deleted.
    let program = std::env::current_exe().map_err(Failure::running)?;
    let state = [NotifyState::MainPid(std::process::id()), NotifyState::Ready];
    if let Err(err) = sd_notify::notify(&state) {
        warn!(%err, "the service manager was not told that the edge is ready");
    }
    let upgrades = tokio::spawn(async move {
        while upgrade.recv().await.is_some() {
            succeed(&program);
        }
    });
    Ok(AbortOnDropHandle::new(upgrades))
}

/// Start the program anew, with the same arguments, to take over from this process.
fn succeed(program: &Path) {
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
            info!(pid = child.id(), "a successor starts");
            // It outlives this process; if not, somebody must hear of it. The thread ends with either.
            std::thread::spawn(move || match child.wait() {
                Ok(status) => error!(%status, "the successor has ended"),
                Err(err) => error!(%err, "the successor cannot be watched"),
            });
        }
        Err(err) => error!(%err, program = %program.display(), "no successor starts"),
    }
}
