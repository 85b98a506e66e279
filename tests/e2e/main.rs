//! What a visitor, an operator or an agent can observe, over real sockets.

mod lab;

mod clients;
mod first;
