//! Proactive duplication: sending short messages twice, against packet loss.

pub(crate) mod duplicator;
pub(crate) mod saved_transmit;
pub(crate) mod send_log;
pub(crate) mod send_logs;
