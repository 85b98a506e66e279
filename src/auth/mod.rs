//! Who may connect, and what they may claim: tokens and names.

mod name;
mod token;

pub use self::name::{Name, NameError};
pub use self::token::{TokenId, Tokens, generate};
