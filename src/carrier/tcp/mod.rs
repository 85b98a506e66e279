//! TCP connections: Happy Eyeballs, proxies, TLS, and socket options.

pub(crate) mod bbr_restart;
pub(crate) mod connect;
pub(crate) mod happy_eyeballs;
pub(crate) mod options;
pub(crate) mod outer_tls;
pub(crate) mod proxy;
