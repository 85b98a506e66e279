//! Sockets and addresses: what any program on a network needs, and nothing about tunnels.

pub mod happy_eyeballs;
pub mod path_kind;
pub mod subnet;
pub mod tcp_options;
pub mod udp_socket;
