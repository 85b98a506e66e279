//! TCP connections to the edge: Happy Eyeballs, proxies, TLS, and the upgrade.

pub(crate) mod bbr_restart;
pub(crate) mod byte_stream;
pub(crate) mod connect;
pub(crate) mod outer_tls;
pub(crate) mod proxy;
