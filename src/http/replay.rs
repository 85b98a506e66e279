//! A request body that can be sent a second time.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use http_body::{Body, Frame, SizeHint};

/// A body whose beginning is buffered until no replay can be needed any more.
pub struct ReplayBuffer<B>(Arc<Mutex<State<B>>>);

struct State<B> {
    body: B,
    buffered: Vec<Bytes>,
    size: usize,
    /// Memory that the buffered bytes count in; `None` if they count nowhere.
    total: Option<Arc<dyn BufferLimit>>,
    /// The buffered prefix was dropped; the body cannot be replayed.
    discarded: bool,
    /// Number of the latest reader.
    reader: u64,
}

impl<B> ReplayBuffer<B> {
    /// Start buffering.
    pub fn new(body: B) -> Self {
        Self::with(None, body)
    }

    /// Start buffering, as long as `total` has room.
    pub fn within(total: Arc<dyn BufferLimit>, body: B) -> Self {
        Self::with(Some(total), body)
    }

    fn with(total: Option<Arc<dyn BufferLimit>>, body: B) -> Self {
        Self(Arc::new(Mutex::new(State {
            body,
            buffered: Vec::new(),
            size: 0,
            total,
            discarded: false,
            reader: 0,
        })))
    }

    /// Read the body from its beginning. Earlier readers get nothing more.
    pub fn read(&self) -> ReplayBody<B> {
        let mut state = self.lock();
        state.reader += 1;
        ReplayBody {
            buffer: Self(self.0.clone()),
            reader: state.reader,
            next: 0,
        }
    }

    /// Return the number of buffered bytes, or `None` if the prefix was dropped.
    pub fn buffered(&self) -> Option<usize> {
        let state = self.lock();
        (!state.discarded).then_some(state.size)
    }

    /// Drop the buffer and stop buffering.
    pub fn stop_buffering(&self) {
        self.lock().discard();
    }

    /// Modify the underlying body, whoever is reading it.
    pub fn change(&self, change: impl FnOnce(&mut B)) {
        change(&mut self.lock().body);
    }

    fn lock(&self) -> MutexGuard<'_, State<B>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<B> State<B> {
    fn buffer(&mut self, data: Bytes) {
        if self.discarded {
            return;
        }
        let size = self.size + data.len();
        let total = self.total.as_ref();
        if size > MAX_BUFFERED || total.is_some_and(|total| !total.is_within_share(size as u64)) {
            return self.discard();
        }
        if let Some(total) = total {
            total.take(data.len() as u64);
        }
        self.size = size;
        self.buffered.push(data);
    }

    fn discard(&mut self) {
        self.discarded = true;
        self.buffered = Vec::new();
        self.release();
    }

    fn release(&mut self) {
        let size = std::mem::take(&mut self.size);
        if let Some(total) = &self.total {
            total.release(size as u64);
        }
    }
}

impl<B> Drop for State<B> {
    fn drop(&mut self) {
        self.release();
    }
}

/// One reader of the body.
pub struct ReplayBody<B> {
    buffer: ReplayBuffer<B>,
    reader: u64,
    /// Index of the next buffered piece.
    next: usize,
}

impl<B> Body for ReplayBody<B>
where
    B: Body + Unpin,
    B::Data: Piece,
{
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.get_mut();
        let mut state = this.buffer.lock();
        if state.reader != this.reader {
            // Neither its end nor more of it: what this reader's request has sent is of no use, and
            // must not look complete.
            return Poll::Pending;
        }
        if let Some(data) = state.buffered.get(this.next) {
            let data = data.clone();
            this.next += 1;
            return Poll::Ready(Some(Ok(Frame::data(data.into()))));
        }
        let frame = ready!(Pin::new(&mut state.body).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => match frame.data_ref() {
                Some(data) => state.buffer(data.share()),
                // Trailers, which end the body: too rare to be buffered.
                None => state.discard(),
            },
            Some(Err(_)) => state.discard(),
            None => {}
        }
        this.next = state.buffered.len();
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        let state = self.buffer.lock();
        self.next >= state.buffered.len() && state.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let state = self.buffer.lock();
        let again: usize = state.buffered.iter().skip(self.next).map(Bytes::len).sum();
        let rest = state.body.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower() + again as u64);
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper + again as u64);
        }
        hint
    }
}

/// Piece of a body whose bytes can be buffered. Replayed bytes count in no window: they were read
/// before.
pub trait Piece: Buf + From<Bytes> {
    /// Return the bytes, without copying them.
    fn share(&self) -> Bytes;
}

impl Piece for Bytes {
    fn share(&self) -> Bytes {
        self.clone()
    }
}

/// Memory that buffered bytes count in, in bytes.
pub trait BufferLimit: Send + Sync {
    /// Report whether a holder of this many bytes leaves enough to others.
    fn is_within_share(&self, bytes: u64) -> bool;

    /// Reserve bytes.
    fn take(&self, bytes: u64);

    /// Release reserved bytes.
    fn release(&self, bytes: u64);
}

/// Most bytes to buffer of one body: enough for most forms and API calls, and little enough for
/// every request in progress.
const MAX_BUFFERED: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http_body_util::{BodyExt, StreamBody};

    use super::*;

    fn buffer(
        sizes: &'static [usize],
    ) -> ReplayBuffer<impl Body<Data = Bytes, Error = Infallible> + Unpin> {
        let frames = sizes
            .iter()
            .map(|size| Ok(Frame::data(Bytes::from(vec![7; *size]))));
        ReplayBuffer::new(StreamBody::new(futures_util::stream::iter(frames)))
    }

    #[tokio::test]
    async fn a_small_body_can_be_replayed_after_a_partial_read() {
        let buffer = buffer(&[10, 20, 30]);

        let mut first = buffer.read();
        first.frame().await.unwrap().unwrap();
        drop(first);
        let again = buffer.read().collect().await.unwrap().to_bytes();
        let third = buffer.read().collect().await.unwrap().to_bytes();

        assert_eq!((again.len(), third.len()), (60, 60));
        assert_eq!(buffer.buffered(), Some(60));
    }

    #[tokio::test]
    async fn an_earlier_reader_takes_nothing_from_a_later_one() {
        let buffer = buffer(&[10, 20]);

        let mut first = buffer.read();
        let mut second = buffer.read();

        assert!(futures_util::poll!(first.frame()).is_pending());
        assert_eq!(
            second
                .frame()
                .await
                .unwrap()
                .unwrap()
                .into_data()
                .unwrap()
                .len(),
            10
        );
    }

    #[tokio::test]
    async fn a_large_body_is_not_buffered() {
        let buffer = buffer(&[MAX_BUFFERED, 1, 5]);

        let whole = buffer.read().collect().await.unwrap().to_bytes();

        assert_eq!(whole.len(), MAX_BUFFERED + 6);
        assert_eq!(buffer.buffered(), None);
        assert_eq!(buffer.read().collect().await.unwrap().to_bytes().len(), 0);
    }

    #[tokio::test]
    async fn a_body_that_is_no_longer_buffered_continues_where_it_is() {
        let buffer = buffer(&[10, 20]);

        let mut reader = buffer.read();
        reader.frame().await.unwrap().unwrap();
        buffer.stop_buffering();
        let rest = reader.collect().await.unwrap().to_bytes();

        assert_eq!((rest.len(), buffer.buffered()), (20, None));
    }
}
