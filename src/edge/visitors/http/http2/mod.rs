//! What the edge adds to hyper's HTTP/2 server: time limits of connections and streams, and answers
//! that arrive before a stream is reset.

pub(crate) mod connection;
pub(crate) mod frames;
pub(crate) mod io;
pub(crate) mod stream;
pub(crate) mod upgraded;

pub use self::connection::{Connection, Expired};
pub use self::io::ObservedIo;
pub use self::stream::{Stream, StreamExecutor};
pub use self::upgraded::UpgradedStream;
