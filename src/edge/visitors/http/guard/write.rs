//! The guard's writing side: hyper's bytes unchanged, informational responses between them, and a
//! lingering close.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Buf;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::{Deadline, Guard, InputMode};

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Guard<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_ready_to_write(cx))?;
        Pin::new(&mut this.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_ready_to_write(cx))?;
        Pin::new(&mut this.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    /// Flush; hyper does this only when it has nothing left to write.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.is_writing {
            ready!(Pin::new(&mut this.io).poll_flush(cx))?;
            this.is_writing = false;
            this.verdicts.block_informational(false);
            this.note_flushed(cx);
        }
        ready!(this.poll_write_informational(cx))?;
        Pin::new(&mut this.io).poll_flush(cx)
    }

    /// Shut down our sending side, and then let the visitor read the response if its request was
    /// not read to the end.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.linger.is_none() {
            ready!(Pin::new(&mut this.io).poll_shutdown(cx))?;
            this.linger = Some(Deadline::after(this.limits.linger));
        }
        this.poll_linger(cx).map(Ok)
    }
}

impl<S: AsyncWrite + Unpin> Guard<S> {
    /// Write the informational responses before anything of hyper's.
    fn poll_write_informational(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if self.informational.is_empty() {
                self.informational = self.verdicts.take_informational();
            }
            if self.informational.is_empty() {
                return Poll::Ready(Ok(()));
            }
            let written = ready!(Pin::new(&mut self.io).poll_write(cx, &self.informational))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.informational.advance(written);
        }
    }

    /// Prepare to write hyper's bytes.
    fn poll_ready_to_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_writing {
            return Poll::Ready(Ok(()));
        }
        ready!(self.poll_write_informational(cx))?;
        self.is_writing = true;
        self.verdicts.block_informational(true);
        Poll::Ready(Ok(()))
    }
}

impl<S> Guard<S> {
    /// Start the time limits that apply while nothing is being written.
    fn note_flushed(&mut self, cx: &mut Context<'_>) {
        if self.half_closed.is_set() {
            self.half_close();
            // hyper reads again, and sees the end if this was all.
            cx.waker().wake_by_ref();
        } else if !self.verdicts.is_answering() && matches!(self.input, InputMode::Examine) {
            self.idle.set(Instant::now() + self.limits.idle);
            // Registers the waker; hyper's next read returns the result.
            let _ = self.idle.poll(cx);
        }
    }
}

impl<S: AsyncRead + Unpin> Guard<S> {
    /// Discard what the visitor still sends, until it has seen the response or time is up.
    ///
    /// Closing a socket with unread bytes resets the connection, and that can destroy the response
    /// before the visitor has read it (RFC 9112 §9.6).
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut scratch = [MaybeUninit::uninit(); 4096];
        loop {
            let deadline = self.linger.as_mut();
            if deadline.is_none_or(|deadline| deadline.poll(cx).is_ready()) {
                return Poll::Ready(());
            }
            let mut scratch = ReadBuf::uninit(&mut scratch);
            match Pin::new(&mut self.io).poll_read(cx, &mut scratch) {
                // Perhaps another request behind the last one that is answered.
                Poll::Ready(Ok(())) if !scratch.filled().is_empty() => self.has_discarded = true,
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending if self.has_discarded || self.may_be_sending() => {
                    return Poll::Pending;
                }
                Poll::Pending => return Poll::Ready(()),
            }
        }
    }

    /// Report whether the visitor may still be sending data that nobody will read.
    fn may_be_sending(&self) -> bool {
        match self.input {
            InputMode::Refused | InputMode::Broken(_) => true,
            InputMode::Examine => self.scanner.is_in_body() || !self.held.is_empty(),
            InputMode::AwaitUpgrade | InputMode::Raw => false,
        }
    }
}
