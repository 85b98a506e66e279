//! Formatting of errors for logs and people.

use std::error::Error;

/// Format an error with its causes, on one line.
pub fn chain(err: &dyn Error) -> String {
    let mut text = err.to_string();
    let mut cause = err.source();
    while let Some(err) = cause {
        text = format!("{text}: {err}");
        cause = err.source();
    }
    text
}
