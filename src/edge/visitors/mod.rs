//! Visitors: connections, the limits on them, and the protocols they speak.

pub(crate) mod accept;
pub(crate) mod client;
pub(crate) mod connection_id;
pub(crate) mod connection_limit;
pub(crate) mod context;
pub(crate) mod conversations;
pub(crate) mod fair_share;
pub(crate) mod http;
pub(crate) mod lazy_deadline;
pub(crate) mod socket;
pub(crate) mod worker_affinity;
