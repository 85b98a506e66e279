//! What has been taken off a stream before its reader asks for it.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

use super::flow::{Exceeded, SharedWindow, Unread};

/// Data in the order in which it came, and perhaps the end behind it. All of it counts as unread.
pub struct Ahead<E> {
    window: SharedWindow,
    pieces: VecDeque<Bytes>,
    /// Small pieces, put together: each would keep a whole packet in memory.
    small: BytesMut,
    /// All of these, in bytes.
    length: u64,
    end: Option<E>,
    has_ended: bool,
}

impl<E> Ahead<E> {
    /// Begin with nothing, and count in that window.
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

    /// Add what has come.
    ///
    /// # Errors
    /// If that is more than the window allowed.
    pub fn push(&mut self, data: Bytes) -> Result<(), Exceeded> {
        self.window.count(data.len())?;
        self.length += data.len() as u64;
        if data.len() < SMALL {
            self.small.extend_from_slice(&data);
            return Ok(());
        }
        if !self.small.is_empty() {
            self.pieces.push_back(self.small.split().freeze());
        }
        self.pieces.push_back(data);
        Ok(())
    }

    /// Add what ends the stream, or its data.
    pub fn finish(&mut self, end: E) {
        self.end = Some(end);
        self.has_ended = true;
    }

    /// Report whether nothing more is to be added.
    pub fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// Return how many bytes are here.
    pub fn len(&self) -> u64 {
        self.length
    }

    /// Take the next data, at most so much.
    pub fn next(&mut self, most: usize) -> Option<Unread> {
        let mut piece = match self.pieces.pop_front() {
            Some(piece) => piece,
            None if self.small.is_empty() => return None,
            None => std::mem::take(&mut self.small).freeze(),
        };
        if piece.len() > most {
            self.pieces.push_front(piece.split_off(most));
        }
        self.length -= piece.len() as u64;
        Some(self.window.unread(piece))
    }

    /// Take the end, once all data is taken.
    pub fn end(&mut self) -> Option<E> {
        self.end.take()
    }
}

impl<E> Drop for Ahead<E> {
    fn drop(&mut self) {
        self.window.take(self.length);
    }
}

/// A piece of so many bytes is worth the packet that it lies in.
const SMALL: usize = 512;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::stream::flow::{Budget, BufferTotal, FlowControl, ReceiveWindow};

    /// A window in which so many bytes are allowed, and what counts them.
    fn window(allowed: u64) -> (SharedWindow, std::sync::Arc<BufferTotal>) {
        let total = BufferTotal::new(1 << 20);
        let budget = Budget::new(1 << 20, total.clone());
        let flow = FlowControl::new(|| Duration::ZERO, || false, |_, _| (), budget, |_| ());
        let window = SharedWindow::new(ReceiveWindow::least(flow, 0));
        window.open(allowed);
        (window, total)
    }

    #[test]
    fn data_comes_out_in_order_and_in_pieces_of_the_size_that_is_asked_for() {
        let mut ahead = Ahead::new(window(10_000).0);
        let large = vec![b'b'; SMALL];
        for data in [b"a".as_slice(), b"a", &large, b"c", b"c"] {
            ahead.push(Bytes::copy_from_slice(data)).unwrap();
        }
        ahead.finish("end");

        let pieces = std::iter::from_fn(|| ahead.next(SMALL - 1));
        let pieces: Vec<_> = pieces.map(|piece| piece.share()).collect();

        assert_eq!(pieces, [b"aa".as_slice(), &large[1..], b"b", b"cc"]);
        assert_eq!(ahead.end(), Some("end"));
        assert_eq!(ahead.end(), None);
    }

    #[test]
    fn one_byte_more_than_allowed_is_an_error_and_none_of_it_counts_for_ever() {
        let (window, total) = window(4);
        let mut ahead = Ahead::<()>::new(window.clone());

        assert!(ahead.push(Bytes::from_static(b"1234")).is_ok());
        let piece = ahead.next(3).unwrap();
        assert!(ahead.push(Bytes::from_static(b"5")).is_err());
        drop((ahead, piece, window));

        assert_eq!(total.used(), 0);
    }
}
