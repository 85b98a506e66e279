//! Messages with descriptors between processes of an edge, as far as systems differ in how they are sent.

use std::io;
use std::os::fd::OwnedFd;

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::{RecvFlags, SendFlags};

/// Take a descriptor that came with a message. Programs that we start do not get it, also where only a call of
/// its own says that.
///
/// # Errors
/// If the system refuses.
pub fn received(descriptor: OwnedFd) -> io::Result<OwnedFd> {
    if !cfg!(target_os = "linux") {
        fcntl_setfd(&descriptor, FdFlags::CLOEXEC)?;
    }
    Ok(descriptor)
}

/// Do not wait for room, and have no signal sent to us if the other end is gone. Where the system has no such
/// flag, Rust programs ignore that signal (SIGPIPE) from their start on.
pub const SEND: SendFlags = SendFlags::DONTWAIT.union(NO_SIGNAL);

/// Do not wait for a message, and keep its descriptors from programs that we start: see [`received`].
pub const RECEIVE: RecvFlags = RecvFlags::DONTWAIT.union(CLOSE_ON_EXEC);

#[cfg(target_os = "linux")]
const NO_SIGNAL: SendFlags = SendFlags::NOSIGNAL;

#[cfg(not(target_os = "linux"))]
const NO_SIGNAL: SendFlags = SendFlags::empty();

#[cfg(target_os = "linux")]
const CLOSE_ON_EXEC: RecvFlags = RecvFlags::CMSG_CLOEXEC;

#[cfg(not(target_os = "linux"))]
const CLOSE_ON_EXEC: RecvFlags = RecvFlags::empty();
