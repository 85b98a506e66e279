//! A TCP connection whose first packets after a pause leave at once.
//!
//! BBR paces by the rate that it has seen. Who asks for one small thing after the other shows it next to nothing,
//! and as soon as a packet is lost on the way, it takes that for what the path can do: an answer of 10 KiB is
//! spread over a whole round trip then, and the next one as well. It has no way back while little is sent. So we
//! have it begin anew, where nothing is on its way that it would forget.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// See the module.
pub(crate) struct BbrRestart {
    tcp: TcpStream,
    #[cfg(target_os = "linux")]
    bbr: linux::Bbr,
}

impl BbrRestart {
    pub(crate) fn new(tcp: TcpStream) -> Self {
        Self {
            #[cfg(target_os = "linux")]
            bbr: linux::Bbr::of(&tcp),
            tcp,
        }
    }

    fn tcp(self: Pin<&mut Self>) -> Pin<&mut TcpStream> {
        Pin::new(&mut self.get_mut().tcp)
    }

    fn before_write(&mut self) {
        #[cfg(target_os = "linux")]
        self.bbr.before_write(&self.tcp);
    }
}

impl AsyncRead for BbrRestart {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.tcp().poll_read(cx, buf)
    }
}

impl AsyncWrite for BbrRestart {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.before_write();
        self.tcp().poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.before_write();
        self.tcp().poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.tcp().poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.tcp().poll_shutdown(cx)
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use std::io;
    use std::os::fd::AsRawFd;
    use std::time::{Duration, Instant};

    use socket2::SockRef;
    use tokio::net::TcpStream;
    use tracing::debug;

    use crate::carrier::tcp::options;

    /// What there is to know of a socket's BBR.
    pub(crate) struct Bbr {
        /// When it was last looked at; never on a socket that has another congestion control.
        looked: Option<Instant>,
    }

    impl Bbr {
        pub(crate) fn of(tcp: &TcpStream) -> Self {
            let is_on_bbr = options::is_on_bbr(&SockRef::from(tcp));
            Self {
                looked: is_on_bbr.then(Instant::now),
            }
        }

        /// Have BBR begin anew if little is on its way, and the next flight would take long to leave.
        pub(crate) fn before_write(&mut self, tcp: &TcpStream) {
            let Some(looked) = &mut self.looked else {
                return;
            };
            let now = Instant::now();
            if now.saturating_duration_since(*looked) < LOOK {
                return;
            }
            *looked = now;
            if Info::of(tcp).is_ok_and(|info| info.is_slow_to_begin())
                && let Err(err) = reset_bbr(&SockRef::from(tcp))
            {
                debug!(%err, "a tcp socket does not begin anew");
                self.looked = None;
            }
        }
    }

    /// Make BBR forget: only another congestion control in between does. Whoever may not have BBR any more stays
    /// with that one.
    fn reset_bbr(tcp: &SockRef) -> io::Result<()> {
        tcp.set_tcp_congestion(b"reno")?;
        options::set_bbr(tcp)
    }

    /// The beginning of the kernel's `struct tcp_info`, as far as it is wanted (`linux/tcp.h`; its fields stay
    /// where they are, new ones come behind).
    #[repr(C)]
    #[derive(Default)]
    pub(crate) struct Info {
        state: [u8; 8],
        timeouts: [u32; 2],
        /// Bytes of a segment.
        segment: u32,
        segment_received: u32,
        /// Segments on their way.
        unacked: u32,
        between: [u32; 10],
        /// Smoothed round trip in microseconds.
        rtt: u32,
        behind: [u32; 8],
        /// Bytes per second.
        pacing_rate: u64,
    }

    impl Info {
        pub(crate) fn of(tcp: &TcpStream) -> io::Result<Self> {
            let mut info = Self::default();
            let mut length = size_of::<Self>() as libc::socklen_t;
            // SAFETY: the kernel writes no more than `length` bytes, which are integers all.
            let result = unsafe {
                libc::getsockopt(
                    tcp.as_raw_fd(),
                    libc::IPPROTO_TCP,
                    libc::TCP_INFO,
                    (&raw mut info).cast(),
                    &mut length,
                )
            };
            match result {
                0 => Ok(info),
                _ => Err(io::Error::last_os_error()),
            }
        }

        fn is_slow_to_begin(&self) -> bool {
            let a_round_trip = self.pacing_rate.saturating_mul(self.rtt.into()) / 1_000_000;
            self.unacked <= FEW && a_round_trip < FLIGHT * u64::from(self.segment)
        }
    }

    /// How often the socket is looked at while packets are written.
    const LOOK: Duration = Duration::from_millis(10);

    /// Segments on their way that are little: an acknowledgement of QUIC's goes ahead of an answer.
    const FEW: u32 = 2;

    /// Segments that may leave within a round trip at least: the initial window (RFC 6928) within half of it.
    const FLIGHT: u64 = 20;

    #[cfg(test)]
    mod tests {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        use tokio::net::TcpListener;

        use super::*;

        #[tokio::test]
        async fn the_kernel_says_what_we_read_where_we_read_it() {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let connecting = TcpStream::connect(listener.local_addr().unwrap());
            let (mut near, far) = tokio::try_join!(connecting, listener.accept()).unwrap();
            let mut far = far.0;
            near.write_all(&[7; 4_000]).await.unwrap();
            far.read_exact(&mut [0; 4_000]).await.unwrap();
            far.write_all(b"and back").await.unwrap();
            near.read_exact(&mut [0; 8]).await.unwrap();

            let info = Info::of(&near).unwrap();

            const ESTABLISHED: u8 = 1;
            assert_eq!(info.state[0], ESTABLISHED);
            assert_eq!(info.segment, SockRef::from(&near).tcp_mss().unwrap());
            assert_eq!(info.unacked, 0);
            assert!((1..1_000_000).contains(&info.rtt), "{} µs", info.rtt);
            assert!(info.pacing_rate > 0);
        }

        #[test]
        fn a_connection_begins_anew_where_an_answer_would_be_spread_over_a_round_trip() {
            let at = |mbit: u64, unacked| Info {
                segment: 1_448,
                unacked,
                rtt: 40_000,
                pacing_rate: mbit * 125_000,
                ..Info::default()
            };

            assert!(at(2, 0).is_slow_to_begin());
            assert!(!at(20, 0).is_slow_to_begin());
            assert!(!at(2, 8).is_slow_to_begin(), "it would forget these");
        }
    }
}
