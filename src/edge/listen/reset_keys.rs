//! Keys that let a restarted edge reset its predecessor's connections, so that agents notice the
//! restart at once (stateless reset, RFC 9000 §10.3).

use tracing::warn;

use crate::carrier::EdgeKeys;
use crate::state::{StateDir, StateError};

/// Read the keys of the last edge with this state directory, or create them.
///
/// # Errors
/// If the state directory cannot be used.
pub fn open(state: &StateDir) -> Result<EdgeKeys, StateError> {
    let fresh = || {
        let mut random = vec![0; EdgeKeys::LENGTH];
        aws_lc_rs::rand::fill(&mut random).expect("the operating system has random numbers");
        random
    };
    let found = state.read_or_write(FILE, fresh)?;
    if let Ok(bytes) = <&[u8; EdgeKeys::LENGTH]>::try_from(found.as_slice()) {
        return Ok(EdgeKeys::from_bytes(bytes));
    }
    warn!("the file {FILE} is damaged, agents of an earlier edge will take longer to reconnect");
    let fresh = fresh();
    state.write(FILE, &fresh)?;
    let bytes = fresh.as_slice().try_into().expect("made with that length");
    Ok(EdgeKeys::from_bytes(bytes))
}

/// Save these keys for the next edge with this state directory.
///
/// # Errors
/// If the state directory cannot be used.
#[cfg(unix)]
pub fn save(state: &StateDir, keys: EdgeKeys) -> Result<(), StateError> {
    state.write(FILE, &keys.to_bytes())
}

const FILE: &str = "quic.keys";
