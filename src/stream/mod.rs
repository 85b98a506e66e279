//! One conversation on a QUIC stream, whatever it carries: heads, bodies, raw bytes, flow control.

mod ahead;
pub(crate) mod flow;
mod quota;
mod receive;
mod relay;
mod send;

pub(crate) use flow::{
    Budget, BufferTotal, FlowControl, ReceiveWindow, SendWindow, SharedWindow, Unread,
};
pub(crate) use quota::Quota;
pub(crate) use receive::{Activity, ReceiveError, Receiver, TunnelBody, next_message};
pub(crate) use relay::{Relayed, relay};
pub(crate) use send::{CONTROL_PRIORITY, SendError, Sender};
