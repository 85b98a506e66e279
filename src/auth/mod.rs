//! Who may connect, and what they may claim: tokens and names.

mod name;
mod token;

pub use name::{Name, NameError};
pub use token::{TokenId, Tokens, generate};
