//! A TCP connection that resets BBR after idle, so that the first packets after a pause are not paced slowly.
//!
//! BBR paces by its estimate of the bandwidth. A connection with one small request after the other gives it few
//! samples, and as soon as a packet is lost, it takes those samples for the path's bandwidth: a response of 10 KiB
//! is then spread over a whole round trip, and so is the next one. BBR does not recover from that while little is
//! sent. So this module resets BBR, but only while next to nothing is in flight that it would lose track of.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// A TCP stream that resets BBR before a write where pacing would delay it. See the module.
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

    use crate::net::tcp_options;

    /// The state of the BBR resets of one socket.
    pub(crate) struct Bbr {
        /// The time of the last check. `None` disables checks: the socket uses another congestion control.
        last_check: Option<Instant>,
    }

    impl Bbr {
        pub(crate) fn of(tcp: &TcpStream) -> Self {
            let is_on_bbr = tcp_options::is_on_bbr(&SockRef::from(tcp));
            Self {
                last_check: is_on_bbr.then(Instant::now),
            }
        }

        /// Reset BBR if little is in flight and the next flight would be paced too slowly. Checks the socket at most
        /// once per [`CHECK_INTERVAL`].
        pub(crate) fn before_write(&mut self, tcp: &TcpStream) {
            let Some(last_check) = &mut self.last_check else {
                return;
            };
            let now = Instant::now();
            if now.saturating_duration_since(*last_check) < CHECK_INTERVAL {
                return;
            }
            *last_check = now;
            if TcpInfo::of(tcp).is_ok_and(|info| info.would_pace_slowly())
                && let Err(err) = reset_bbr(&SockRef::from(tcp))
            {
                debug!(%err, "cannot reset BBR on a TCP socket");
                self.last_check = None;
            }
        }
    }

    /// Reset BBR's estimates by switching to another congestion control and back, which is the only way. If the
    /// system no longer permits BBR, the socket stays with the other one.
    fn reset_bbr(tcp: &SockRef) -> io::Result<()> {
        tcp.set_tcp_congestion(b"reno")?;
        tcp_options::set_bbr(tcp)
    }

    /// The first part of the kernel's `struct tcp_info` (`linux/tcp.h`), as far as it is needed. Its fields never
    /// move; new ones are appended.
    #[repr(C)]
    #[derive(Default)]
    pub(crate) struct TcpInfo {
        state: [u8; 8],
        timeouts: [u32; 2],
        /// The maximum segment size, in bytes.
        segment: u32,
        segment_received: u32,
        /// Segments in flight.
        unacked: u32,
        between: [u32; 10],
        /// The smoothed round-trip time, in microseconds.
        rtt: u32,
        behind: [u32; 8],
        /// The pacing rate, in bytes per second.
        pacing_rate: u64,
    }

    impl TcpInfo {
        /// Query `TCP_INFO`.
        pub(crate) fn of(tcp: &TcpStream) -> io::Result<Self> {
            let mut info = Self::default();
            let mut length = size_of::<Self>() as libc::socklen_t;
            // SAFETY: the kernel writes at most `length` bytes, and all fields are integers.
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

        /// Report whether little is in flight and BBR would spread the next flight over more than half of a
        /// round trip.
        fn would_pace_slowly(&self) -> bool {
            let a_round_trip = self.pacing_rate.saturating_mul(self.rtt.into()) / 1_000_000;
            self.unacked <= MAX_IN_FLIGHT
                && a_round_trip < MIN_SEGMENTS_PER_RTT * u64::from(self.segment)
        }
    }

    /// The shortest time between two checks of the socket.
    const CHECK_INTERVAL: Duration = Duration::from_millis(10);

    /// Segments that may be in flight when BBR is reset: QUIC sends an acknowledgement ahead of a response.
    const MAX_IN_FLIGHT: u32 = 2;

    /// Segments per round trip below which pacing is too slow: the initial window (RFC 6928) within half of a round
    /// trip.
    const MIN_SEGMENTS_PER_RTT: u64 = 20;

    #[cfg(test)]
    mod tests {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        use tokio::net::TcpListener;

        use super::*;

        #[tokio::test]
        async fn tcp_info_has_the_layout_of_the_kernels_structure() {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let connecting = TcpStream::connect(listener.local_addr().unwrap());
            let (mut near, far) = tokio::try_join!(connecting, listener.accept()).unwrap();
            let mut far = far.0;
            near.write_all(&[7; 4_000]).await.unwrap();
            far.read_exact(&mut [0; 4_000]).await.unwrap();
            far.write_all(b"and back").await.unwrap();
            near.read_exact(&mut [0; 8]).await.unwrap();

            let info = TcpInfo::of(&near).unwrap();

            const ESTABLISHED: u8 = 1;
            assert_eq!(info.state[0], ESTABLISHED);
            assert_eq!(info.segment, SockRef::from(&near).tcp_mss().unwrap());
            assert_eq!(info.unacked, 0);
            assert!((1..1_000_000).contains(&info.rtt), "{} µs", info.rtt);
            assert!(info.pacing_rate > 0);
        }

        #[test]
        fn bbr_is_reset_where_a_response_would_be_spread_over_a_round_trip() {
            let at = |mbit: u64, unacked| TcpInfo {
                segment: 1_448,
                unacked,
                rtt: 40_000,
                pacing_rate: mbit * 125_000,
                ..TcpInfo::default()
            };

            assert!(at(2, 0).would_pace_slowly());
            assert!(!at(20, 0).would_pace_slowly());
            assert!(
                !at(2, 8).would_pace_slowly(),
                "BBR would lose track of these"
            );
        }
    }
}
