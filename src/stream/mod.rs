//! One conversation on a QUIC stream, whatever it carries: heads, bodies, raw bytes, flow control.

pub(crate) mod flow;
mod rate_limit;
mod read_ahead;
mod receive;
mod relay;
mod send;

pub(crate) use flow::{
    Budget, BufferTotal, FlowControl, ReceiveWindow, SendWindow, SharedWindow, Unread,
};
pub(crate) use rate_limit::RateLimit;
pub(crate) use receive::{
    Activity, ReceiveError, Receiver, TunnelBody, first_message, next_message,
};
pub(crate) use relay::{Relayed, relay};
pub(crate) use send::{CONTROL_PRIORITY, SendError, Sender};
