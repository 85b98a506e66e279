//! A session with the edge: dialling, the control stream, backoff, and draining.

pub(crate) mod backoff;
pub(crate) mod connect_error;
pub(crate) mod control;
pub(crate) mod dial;
pub(crate) mod draining;
pub(crate) mod log_throttle;
pub(crate) mod open;
pub(crate) mod unread;
