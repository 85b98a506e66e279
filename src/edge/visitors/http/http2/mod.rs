//! Additions to hyper's HTTP/2 server: time limits on connections and streams, a budget for what
//! visitors send ahead, and responses that arrive before a stream is reset.

pub(crate) mod connection;
pub(crate) mod counted_reads;
pub(crate) mod frames;
pub(crate) mod io;
pub(crate) mod sent_ahead;
pub(crate) mod stream;
pub(crate) mod upgraded;

pub use self::connection::{Expired, Http2Connection};
pub use self::counted_reads::CountedReads;
pub use self::io::{ObservedIo, ROOM_CHECK_INTERVAL};
pub use self::sent_ahead::SentAhead;
pub use self::stream::{Http2Stream, StreamExecutor};
pub use self::upgraded::UpgradedStream;
