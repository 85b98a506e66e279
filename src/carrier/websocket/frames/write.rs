//! Vectored writing: many frames in one system call.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncWrite, AsyncWriteExt};

/// Write all frames and flush. Written frames are removed from `frames`, and their bytes are added to `written`.
///
/// Cancel safe: if the future is dropped, `frames` starts with the unwritten rest of the first one.
pub(crate) async fn write_all(
    io: &mut (impl AsyncWrite + Unpin),
    frames: &mut VecDeque<Bytes>,
    written: &AtomicU64,
) -> io::Result<()> {
    while !frames.is_empty() {
        let n = poll_fn(|cx| {
            let mut slices = [IoSlice::new(&[]); MAX_SLICES];
            let used = slices.iter_mut().zip(frames.iter());
            let used = used
                .map(|(slice, frame)| *slice = IoSlice::new(frame))
                .count();
            Pin::new(&mut *io).poll_write_vectored(cx, &slices[..used])
        })
        .await?;
        if n == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        written.fetch_add(n as u64, Relaxed);
        advance(frames, n);
    }
    io.flush().await
}

/// Remove written bytes from the front.
fn advance(frames: &mut VecDeque<Bytes>, mut bytes: usize) {
    while let Some(frame) = frames.front_mut() {
        if frame.len() > bytes {
            return frame.advance(bytes);
        }
        bytes -= frame.len();
        frames.pop_front();
    }
}

/// The most frames per vectored write.
const MAX_SLICES: usize = 16;
