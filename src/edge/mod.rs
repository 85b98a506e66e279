#[allow(dead_code, reason = "not called until the edge is wired")]
mod guard;
#[allow(dead_code, reason = "not called until the edge is wired")]
mod host;
#[allow(dead_code, reason = "not called until the edge is wired")]
mod validate;
#[allow(dead_code, reason = "not called until the edge is wired")]
mod violation;
