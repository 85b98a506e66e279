//! Names, the leases that agents hold on them, and requests that wait for an agent.

pub(crate) mod lease;
pub(crate) mod lease_file;
pub(crate) mod registry;
pub(crate) mod tunnel;
pub(crate) mod waiting;
