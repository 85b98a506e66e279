//! What the edge adds to hyper's HTTP/2 server: time limits of connections and streams, a
//! budget for what is sent ahead, and answers that arrive before a stream is reset.

pub(crate) mod connection;
pub(crate) mod counted_reads;
pub(crate) mod frames;
pub(crate) mod io;
pub(crate) mod sent_ahead;
pub(crate) mod stream;
pub(crate) mod upgraded;

pub use self::connection::{Connection, Expired};
pub use self::counted_reads::CountedReads;
pub use self::io::ObservedIo;
pub use self::sent_ahead::SentAhead;
pub use self::stream::{Stream, StreamExecutor};
pub use self::upgraded::UpgradedStream;
