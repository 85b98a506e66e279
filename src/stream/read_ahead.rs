//! Data read from a stream before its reader asks for it.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

use super::flow::{SharedWindow, Unread, WindowExceeded};

/// Queue of the data read ahead, and what ended it. All of it counts as unread.
pub struct ReadAhead<E> {
    window: SharedWindow,
    pieces: VecDeque<Bytes>,
    /// Small pieces at the end of the queue, joined: each would keep a whole packet in memory.
    small: BytesMut,
    /// Length of all of these, in bytes.
    length: u64,
    end: Option<E>,
    has_ended: bool,
}

impl<E> ReadAhead<E> {
    /// Create an empty queue that counts in this window.
    pub fn new(window: SharedWindow) -> Self {
        Self {
            window,
            pieces: VecDeque::new(),
            small: BytesMut::new(),
            length: 0,
            end: None,
            has_ended: false,
        }
    }

    /// Add received data.
    ///
    /// # Errors
    /// If more was received than the window allows.
    pub fn push(&mut self, data: Bytes) -> Result<(), WindowExceeded> {
        self.window.count(data.len())?;
        self.length += data.len() as u64;
        if data.len() < SMALL_PIECE {
            self.small.extend_from_slice(&data);
            return Ok(());
        }
        if !self.small.is_empty() {
            self.pieces.push_back(self.small.split().freeze());
        }
        self.pieces.push_back(data);
        Ok(())
    }

    /// Add what ended the stream, or its data.
    pub fn finish(&mut self, end: E) {
        self.end = Some(end);
        self.has_ended = true;
    }

    /// Report whether the end has been added.
    pub fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// Return the number of bytes in the queue.
    pub fn len(&self) -> u64 {
        self.length
    }

    /// Take the next piece, of at most `limit` bytes.
    pub fn next(&mut self, limit: usize) -> Option<Unread> {
        let mut piece = match self.pieces.pop_front() {
            Some(piece) => piece,
            None if self.small.is_empty() => return None,
            None => std::mem::take(&mut self.small).freeze(),
        };
        if piece.len() > limit {
            self.pieces.push_front(piece.split_off(limit));
        }
        self.length -= piece.len() as u64;
        Some(self.window.unread(piece))
    }

    /// Take what ended the data, once all data is taken.
    pub fn end(&mut self) -> Option<E> {
        self.end.take()
    }
}

impl<E> Drop for ReadAhead<E> {
    fn drop(&mut self) {
        self.window.take(self.length);
    }
}

/// Length below which pieces are copied, so that they do not keep a whole packet in memory.
const SMALL_PIECE: usize = 512;

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::stream::flow::{Budget, BufferTotal, FlowControl, ReceiveWindow};

    /// Return a window that allows this many bytes, and the total that it counts in.
    fn window(allowed: u64) -> (SharedWindow, Arc<BufferTotal>) {
        let total = BufferTotal::new(1 << 20);
        let budget = Budget::new(1 << 20, total.clone());
        let flow = FlowControl::new(|| Duration::ZERO, || false, |_, _| (), budget, |_| ());
        let window = SharedWindow::new(ReceiveWindow::smallest(flow, 0));
        window.open(allowed);
        (window, total)
    }

    #[test]
    fn data_is_returned_in_order_and_in_pieces_of_at_most_the_given_size() {
        let mut ahead = ReadAhead::new(window(10_000).0);
        let large = vec![b'b'; SMALL_PIECE];
        for data in [b"a".as_slice(), b"a", &large, b"c", b"c"] {
            ahead.push(Bytes::copy_from_slice(data)).unwrap();
        }
        ahead.finish("end");

        let pieces = std::iter::from_fn(|| ahead.next(SMALL_PIECE - 1));
        let pieces: Vec<_> = pieces.map(|piece| piece.share()).collect();

        assert_eq!(pieces, [b"aa".as_slice(), &large[1..], b"b", b"cc"]);
        assert_eq!(ahead.end(), Some("end"));
        assert_eq!(ahead.end(), None);
    }

    #[test]
    fn one_byte_more_than_allowed_is_an_error_and_everything_is_released() {
        let (window, total) = window(4);
        let mut ahead = ReadAhead::<()>::new(window.clone());

        assert!(ahead.push(Bytes::from_static(b"1234")).is_ok());
        let piece = ahead.next(3).unwrap();
        assert!(ahead.push(Bytes::from_static(b"5")).is_err());
        drop((ahead, piece, window));

        assert_eq!(total.used(), 0);
    }
}
