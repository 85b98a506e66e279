//! Authentication and names: who may connect, and what they may claim.

mod name;
mod token;

pub use self::name::{Name, NameError};
pub use self::token::{TokenId, Tokens, generate};
