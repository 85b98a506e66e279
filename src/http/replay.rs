//! A request's body that can be sent a second time.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use http_body::{Body, Frame, SizeHint};

use crate::stream::flow::{BufferTotal, Unread};

/// A body of which the beginning is kept until it is certain that nobody needs it again.
pub struct ReplayBuffer<B>(Arc<Mutex<State<B>>>);

struct State<B> {
    body: B,
    kept: Vec<Bytes>,
    size: usize,
    /// Where that counts as long as it is kept.
    buffer: Option<Arc<BufferTotal>>,
    /// What has been read is no longer kept as a whole.
    spent: bool,
    /// The number of the latest reading.
    reading: u64,
}

impl<B> ReplayBuffer<B> {
    /// Begin to keep.
    pub fn new(body: B) -> Self {
        Self::with(None, body)
    }

    /// Begin to keep as long as a budget has room.
    pub fn within(buffer: Arc<BufferTotal>, body: B) -> Self {
        Self::with(Some(buffer), body)
    }

    fn with(buffer: Option<Arc<BufferTotal>>, body: B) -> Self {
        Self(Arc::new(Mutex::new(State {
            body,
            kept: Vec::new(),
            size: 0,
            buffer,
            spent: false,
            reading: 0,
        })))
    }

    /// Read the body from its beginning. Whoever read it before reads nothing any more.
    pub fn read(&self) -> ReplayBody<B> {
        let mut state = self.lock();
        state.reading += 1;
        ReplayBody {
            rewind: Self(self.0.clone()),
            reading: state.reading,
            next: 0,
        }
    }

    /// Return how many bytes are kept, or `None` if the beginning is gone.
    pub fn kept(&self) -> Option<usize> {
        let state = self.lock();
        (!state.spent).then_some(state.size)
    }

    /// Keep nothing more.
    pub fn settle(&self) {
        self.lock().spend();
    }

    /// Change the body itself, whoever reads it.
    pub fn change(&self, change: impl FnOnce(&mut B)) {
        change(&mut self.lock().body);
    }

    fn lock(&self) -> MutexGuard<'_, State<B>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<B> State<B> {
    fn keep(&mut self, data: Bytes) {
        if self.spent {
            return;
        }
        let size = self.size + data.len();
        let buffer = self.buffer.as_ref();
        if size > MOST_KEPT || buffer.is_some_and(|buffer| !buffer.has_room_beside(size as u64)) {
            return self.spend();
        }
        if let Some(buffer) = buffer {
            buffer.take(data.len() as u64);
        }
        self.size = size;
        self.kept.push(data);
    }

    fn spend(&mut self) {
        self.spent = true;
        self.kept = Vec::new();
        self.release();
    }

    fn release(&mut self) {
        let kept = std::mem::take(&mut self.size);
        if let Some(buffer) = &self.buffer {
            buffer.give_back(kept as u64);
        }
    }
}

impl<B> Drop for State<B> {
    fn drop(&mut self) {
        self.release();
    }
}

/// One reading of the body.
pub struct ReplayBody<B> {
    rewind: ReplayBuffer<B>,
    reading: u64,
    /// Which of the kept pieces comes next.
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
        let mut state = this.rewind.lock();
        if state.reading != this.reading {
            // Neither its end nor more of it: what was sent of this reading is of no use, and must not look complete.
            return Poll::Pending;
        }
        if let Some(data) = state.kept.get(this.next) {
            let data = data.clone();
            this.next += 1;
            return Poll::Ready(Some(Ok(Frame::data(data.into()))));
        }
        let frame = ready!(Pin::new(&mut state.body).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => match frame.data_ref() {
                Some(data) => state.keep(data.share()),
                // Trailers, which end the body: rare enough not to be kept.
                None => state.spend(),
            },
            Some(Err(_)) => state.spend(),
            None => {}
        }
        this.next = state.kept.len();
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        let state = self.rewind.lock();
        self.next >= state.kept.len() && state.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let state = self.rewind.lock();
        let again: usize = state.kept.iter().skip(self.next).map(Bytes::len).sum();
        let rest = state.body.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower() + again as u64);
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper + again as u64);
        }
        hint
    }
}

/// A piece of a body whose bytes can be kept beside it. What is read again counts in no window: it has been read.
pub trait Piece: Buf + From<Bytes> {
    /// Return the bytes, without copying them.
    fn share(&self) -> Bytes;
}

impl Piece for Bytes {
    fn share(&self) -> Bytes {
        self.clone()
    }
}

impl Piece for Unread {
    fn share(&self) -> Bytes {
        Self::share(self)
    }
}

/// The most to keep of one body: what most forms and calls of interfaces have, and little enough to be
/// kept for every request under way.
const MOST_KEPT: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http_body_util::{BodyExt, StreamBody};

    use super::*;

    fn rewind(
        sizes: &'static [usize],
    ) -> ReplayBuffer<impl Body<Data = Bytes, Error = Infallible> + Unpin> {
        let frames = sizes
            .iter()
            .map(|size| Ok(Frame::data(Bytes::from(vec![7; *size]))));
        ReplayBuffer::new(StreamBody::new(futures_util::stream::iter(frames)))
    }

    #[tokio::test]
    async fn a_small_body_is_read_twice_also_after_a_part_of_it() {
        let rewind = rewind(&[10, 20, 30]);

        let mut first = rewind.read();
        first.frame().await.unwrap().unwrap();
        drop(first);
        let again = rewind.read().collect().await.unwrap().to_bytes();
        let third = rewind.read().collect().await.unwrap().to_bytes();

        assert_eq!((again.len(), third.len()), (60, 60));
        assert_eq!(rewind.kept(), Some(60));
    }

    #[tokio::test]
    async fn an_earlier_reading_takes_nothing_from_a_later_one() {
        let rewind = rewind(&[10, 20]);

        let mut first = rewind.read();
        let mut second = rewind.read();

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
    async fn a_large_body_is_not_kept() {
        let rewind = rewind(&[MOST_KEPT, 1, 5]);

        let whole = rewind.read().collect().await.unwrap().to_bytes();

        assert_eq!(whole.len(), MOST_KEPT + 6);
        assert_eq!(rewind.kept(), None);
        assert_eq!(rewind.read().collect().await.unwrap().to_bytes().len(), 0);
    }

    #[tokio::test]
    async fn what_is_kept_counts_in_the_budget_and_nothing_is_kept_beyond_it() {
        let buffer = BufferTotal::new(100);
        let frames =
            [10; 3].map(|size| Ok::<_, Infallible>(Frame::data(Bytes::from(vec![7; size]))));
        let body = StreamBody::new(futures_util::stream::iter(frames));
        let rewind = ReplayBuffer::<_>::within(buffer.clone(), body);
        let mut reading = rewind.read();

        for used in [10, 20, 0] {
            reading.frame().await.unwrap().unwrap();
            assert_eq!(buffer.used(), used);
        }

        assert_eq!(rewind.kept(), None);
    }

    #[tokio::test]
    async fn a_settled_body_goes_on_where_it_is() {
        let rewind = rewind(&[10, 20]);

        let mut reading = rewind.read();
        reading.frame().await.unwrap().unwrap();
        rewind.settle();
        let rest = reading.collect().await.unwrap().to_bytes();

        assert_eq!((rest.len(), rewind.kept()), (20, None));
    }
}
