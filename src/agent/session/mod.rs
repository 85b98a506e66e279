//! A session with the edge: dialling, the control stream, reconnecting, and draining.

pub(crate) mod backoff;
pub(crate) mod connect_error;
pub(crate) mod control;
pub(crate) mod dial;
pub(crate) mod draining;
pub(crate) mod open;
pub(crate) mod seldom;
pub(crate) mod unread;
