//! What a visitor, an operator or an agent can observe, over real sockets.

mod lab;
#[macro_use]
mod on_each_carrier;

mod aborts;
mod backs;
mod browser;
mod carriers;
mod checks;
mod clients;
mod command_line;
mod directory;
mod early_answers;
mod errors;
mod examples;
mod fairness;
mod first;
mod first_contact;
mod fronts;
mod git;
mod grpc;
mod half_closed;
mod handover;
mod headers;
mod hold;
mod interim;
mod leases;
mod lifecycle;
mod limits;
mod names;
mod semantics;
mod streaming;
mod strict;
mod time_limits;
mod trailers;
mod unauthenticated;
mod upgrade;
mod upstream_connections;
mod upstream_heads;
mod upstream_http2;
mod upstreams;
mod websockets;
mod workers;
