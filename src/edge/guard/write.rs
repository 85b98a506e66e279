//! The way from hyper to the visitor: hyper's bytes untouched, informational responses between them,
//! and an end that the visitor survives.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Buf;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::edge::guard::{Deadline, Flow, Guard};

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
            this.is_writing = false;
            this.verdicts.block_informational(false);
        }
        ready!(this.poll_inform(cx))?;
        Pin::new(&mut this.io).poll_flush(cx)
    }

    /// Say goodbye, and let a visitor read the answer whose request was not read to its end.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.linger.is_none() {
            ready!(Pin::new(&mut this.io).poll_shutdown(cx))?;
            if this.leaves_unread() {
                this.linger = Some(Deadline::after(LINGER));
            }
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

impl<S: AsyncRead + Unpin> Guard<S> {
    /// Read and forget what the visitor still sends, until it has seen the answer or time is up.
    ///
    /// Closing a socket with unread bytes resets the connection, and that can destroy the answer
    /// before the visitor has read it (RFC 9112 §9.6).
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(deadline) = &mut self.linger else {
            return Poll::Ready(());
        };
        let mut scratch = [MaybeUninit::uninit(); 4096];
        loop {
            if deadline.poll(cx).is_ready() {
                return Poll::Ready(());
            }
            let mut scratch = ReadBuf::uninit(&mut scratch);
            match ready!(Pin::new(&mut self.io).poll_read(cx, &mut scratch)) {
                Ok(()) if !scratch.filled().is_empty() => {}
                _ => return Poll::Ready(()),
            }
        }
    }

    /// Report whether the visitor may still be sending what nobody will read.
    fn leaves_unread(&self) -> bool {
        match self.flow {
            Flow::Refused | Flow::Broken(_) => true,
            Flow::Examine => self.scanner.is_in_body(),
            Flow::AwaitUpgrade | Flow::Raw => false,
        }
    }
}

/// How long a visitor may take to read an answer that came before the end of its request: several
/// round trips on a bad network, and too short to be worth holding connections with.
const LINGER: Duration = Duration::from_secs(5);
