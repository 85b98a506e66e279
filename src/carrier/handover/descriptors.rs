//! Passing file descriptors between processes of an edge: the flags that differ between systems.

use std::io;
use std::os::fd::OwnedFd;

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::{RecvFlags, SendFlags};

/// Take a descriptor that was received with a message, and set close-on-exec where receiving does not set it.
///
/// # Errors
/// If the system refuses.
pub fn received(descriptor: OwnedFd) -> io::Result<OwnedFd> {
    if !cfg!(target_os = "linux") {
        fcntl_setfd(&descriptor, FdFlags::CLOEXEC)?;
    }
    Ok(descriptor)
}

/// Send flags: do not block, and do not raise SIGPIPE if the other end is gone. Where the system has no such
/// flag, Rust programs ignore SIGPIPE anyway.
pub const SEND: SendFlags = SendFlags::DONTWAIT.union(NO_SIGNAL);

/// Receive flags: do not block, and set close-on-exec on received descriptors: see [`received`].
pub const RECEIVE: RecvFlags = RecvFlags::DONTWAIT.union(CLOSE_ON_EXEC);

#[cfg(target_os = "linux")]
const NO_SIGNAL: SendFlags = SendFlags::NOSIGNAL;

#[cfg(not(target_os = "linux"))]
const NO_SIGNAL: SendFlags = SendFlags::empty();

#[cfg(target_os = "linux")]
const CLOSE_ON_EXEC: RecvFlags = RecvFlags::CMSG_CLOEXEC;

#[cfg(not(target_os = "linux"))]
const CLOSE_ON_EXEC: RecvFlags = RecvFlags::empty();
