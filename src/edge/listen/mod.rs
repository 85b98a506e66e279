//! Listening sockets, the addresses they are bound to, and the URLs that lead there.

pub(crate) mod bind;
pub(crate) mod listeners;
pub(crate) mod reset_keys;
pub(crate) mod sockets;
pub(crate) mod urls;
