//! Many frames in one call.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncWrite, AsyncWriteExt};

/// Write frames, taking off those that are written and counting their bytes, and see that nothing is held back.
///
/// May be dropped between any two polls; `frames` then begins with what is left of the first one.
pub(crate) async fn write_all(
    io: &mut (impl AsyncWrite + Unpin),
    frames: &mut VecDeque<Bytes>,
    written: &AtomicU64,
) -> io::Result<()> {
    while !frames.is_empty() {
        let n = poll_fn(|cx| {
            let mut slices = [IoSlice::new(&[]); SLICES];
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
        take_off(frames, n);
    }
    io.flush().await
}

fn take_off(frames: &mut VecDeque<Bytes>, mut bytes: usize) {
    while let Some(frame) = frames.front_mut() {
        if frame.len() > bytes {
            return frame.advance(bytes);
        }
        bytes -= frame.len();
        frames.pop_front();
    }
}

/// Slices that are handed to the connection at once.
const SLICES: usize = 16;
