//! Keys by which agents learn at once that the edge was restarted.

use tracing::warn;

use crate::carrier::EdgeKeys;
use crate::state::{StateDir, StateError};

/// Find the keys of the last edge here, or make them.
///
/// # Errors
/// If the state directory does not work.
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
    warn!("the file {FILE} is damaged; agents of an earlier edge will need longer to come back");
    let fresh = fresh();
    state.write(FILE, &fresh)?;
    let bytes = fresh.as_slice().try_into().expect("made with that length");
    Ok(EdgeKeys::from_bytes(bytes))
}

/// Keep these keys for the edge after this one.
///
/// # Errors
/// If the state directory does not work.
#[cfg(unix)]
pub fn keep(state: &StateDir, keys: EdgeKeys) -> Result<(), StateError> {
    state.write(FILE, &keys.to_bytes())
}

const FILE: &str = "quic.keys";
