//! HTTP visitors: a request is checked, routed, forwarded and answered.

pub(crate) mod body;
pub(crate) mod error_page;
pub(crate) mod exchange;
pub(crate) mod failure_log;
pub(crate) mod forward;
pub(crate) mod guard;
pub(crate) mod head_limits;
pub(crate) mod host;
pub(crate) mod http2;
pub(crate) mod idle;
pub(crate) mod paced_body;
pub(crate) mod read_pauses;
mod request_body;
pub(crate) mod route;
pub(crate) mod validate;
pub(crate) mod violation;
