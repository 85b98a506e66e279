//! The way from hyper to the visitor: hyper's bytes untouched, informational responses between them,
//! and an end that the visitor survives.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Buf;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::{Deadline, Flow, Guard};

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Guard<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_turn(cx))?;
        Pin::new(&mut this.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_turn(cx))?;
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
            this.wrote(cx);
        }
        ready!(this.poll_inform(cx))?;
        Pin::new(&mut this.io).poll_flush(cx)
    }

    /// Say goodbye, and let a visitor read the answer whose request was not read to its end.
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
    fn poll_inform(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if self.informing.is_empty() {
                self.informing = self.verdicts.take_informational();
            }
            if self.informing.is_empty() {
                return Poll::Ready(Ok(()));
            }
            let written = ready!(Pin::new(&mut self.io).poll_write(cx, &self.informing))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.informing.advance(written);
        }
    }

    /// Get ready to write what hyper has.
    fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_writing {
            return Poll::Ready(Ok(()));
        }
        ready!(self.poll_inform(cx))?;
        self.is_writing = true;
        self.verdicts.block_informational(true);
        Poll::Ready(Ok(()))
    }
}

impl<S> Guard<S> {
    /// Let time begin that runs when nothing is being written.
    fn wrote(&mut self, cx: &mut Context<'_>) {
        if self.half_closed.is_set() {
            self.half_close();
            // hyper reads again, and hears of the end if this was all.
            cx.waker().wake_by_ref();
        } else if !self.verdicts.is_answering() && matches!(self.flow, Flow::Examine) {
            self.idle.set(Instant::now() + self.limits.idle);
            // It is hyper's next read that hears of it.
            let _ = self.idle.poll(cx);
        }
    }
}

impl<S: AsyncRead + Unpin> Guard<S> {
    /// Read and forget what the visitor still sends, until it has seen the answer or time is up.
    ///
    /// Closing a socket with unread bytes resets the connection, and that can destroy the answer
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
                // Another request, perhaps, behind the last one that is answered.
                Poll::Ready(Ok(())) if !scratch.filled().is_empty() => self.has_discarded = true,
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending if self.has_discarded || self.may_be_sending() => {
                    return Poll::Pending;
                }
                Poll::Pending => return Poll::Ready(()),
            }
        }
    }

    /// Report whether the visitor may still be sending what nobody will read.
    fn may_be_sending(&self) -> bool {
        match self.flow {
            Flow::Refused | Flow::Broken(_) => true,
            Flow::Examine => self.scanner.is_in_body() || !self.held.is_empty(),
            Flow::AwaitUpgrade | Flow::Raw => false,
        }
    }
}
