//! What the edge adds to hyper's HTTP/2 server: time limits of connections and streams, and answers
//! that arrive before a stream is reset.

mod connection;
mod frames;
mod io;
mod stream;
mod upgraded;

pub use connection::{Connection, Expired};
pub use io::ObservedIo;
pub use stream::{Stream, StreamExecutor};
pub use upgraded::UpgradedStream;
