//! A limit on the packets per transmit (generic segmentation offload, GSO), adapted to the traffic.

use std::io;
use std::sync::atomic::{AtomicIsize, AtomicUsize, Ordering::Relaxed};

use quinn::AsyncUdpSocket;
use quinn::udp::Transmit;

use super::duplicate::saved_transmit;

/// The largest number of packets per transmit, raised and lowered with recent use.
///
/// quinn allocates a buffer for the largest transmit before it knows how much there is to send, and each
/// connection keeps that buffer: 13 KiB per agent, most of which are idle.
#[derive(Debug)]
pub(crate) struct GsoLimit {
    allowed: AtomicUsize,
    /// Evidence for a higher limit, or for a lower one if negative.
    need: AtomicIsize,
}

impl GsoLimit {
    pub(crate) fn new() -> Self {
        Self {
            allowed: AtomicUsize::new(MIN_PACKETS),
            need: AtomicIsize::new(0),
        }
    }

    /// Return the largest number of packets that the next transmit may have.
    pub(crate) fn allowed(&self) -> usize {
        self.allowed.load(Relaxed)
    }

    /// Record the size of a transmit, and adapt the limit to it.
    pub(crate) fn record(&self, transmit: &Transmit) {
        let packets = saved_transmit::packets(transmit);
        let allowed = self.allowed();
        let need = match packets {
            full if full >= allowed => self.need.load(Relaxed) + FULL_WEIGHT,
            half if half * 2 > allowed => return,
            _ => self.need.load(Relaxed) - 1,
        };
        match need {
            RAISE_AT.. => self.allow(allowed * 2),
            ..=LOWER_AT => self.allow(allowed / 2),
            _ => self.need.store(need, Relaxed),
        }
    }

    fn allow(&self, packets: usize) {
        self.allowed
            .store(packets.clamp(MIN_PACKETS, MAX_PACKETS), Relaxed);
        self.need.store(0, Relaxed);
    }
}

/// Send a transmit over UDP, split into as many transmits as the socket requires.
///
/// A transmit that was made for a WebSocket may have more packets than the socket supports, and so may one made
/// before the kernel was found to lack GSO. Systems without GSO (macOS) would send all of it as one packet.
///
/// # Errors
/// Returns the socket's error if nothing was sent. If only the rest cannot be sent, it is dropped, like packets
/// lost in the network.
pub(crate) fn send_over_udp(udp: &dyn AsyncUdpSocket, transmit: &Transmit) -> io::Result<()> {
    let max = udp.max_transmit_segments().max(1);
    if saved_transmit::packets(transmit) <= max {
        return udp.try_send(transmit);
    }
    let segment = transmit.segment_size.unwrap_or(transmit.contents.len());
    for (nth, contents) in transmit.contents.chunks(max * segment).enumerate() {
        let sent = udp.try_send(&Transmit {
            contents,
            segment_size: (contents.len() > segment).then_some(segment),
            ..transmit.clone()
        });
        match sent {
            Err(err) if nth == 0 => return Err(err),
            Err(_) => break,
            Ok(()) => {}
        }
    }
    Ok(())
}

/// The lowest limit: enough for the keep-alives of an idle agent.
const MIN_PACKETS: usize = 2;

/// The highest limit: more packets than quinn ever puts into one transmit.
const MAX_PACKETS: usize = 16;

/// The weight of a full transmit as evidence for a higher limit; each short transmit counts 1 against it. Of the
/// transmits of a handshake, one in six is full.
const FULL_WEIGHT: isize = 5;

/// The evidence at which the limit is doubled: three full transmits.
const RAISE_AT: isize = 3 * FULL_WEIGHT;

/// The evidence at which the limit is halved.
const LOWER_AT: isize = -64;

#[cfg(test)]
mod tests {
    use std::io::IoSliceMut;
    use std::net::SocketAddr;
    use std::pin::Pin;
    use std::sync::{Arc, Mutex};
    use std::task::{Context, Poll};

    use quinn::UdpPoller;
    use quinn::udp::RecvMeta;

    use super::*;

    /// The socket of a system without GSO, with room for a number of packets.
    #[derive(Debug)]
    struct OneByOne {
        room: usize,
        sent: Mutex<Vec<Vec<u8>>>,
    }

    impl AsyncUdpSocket for OneByOne {
        fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
            unimplemented!("no test waits for this socket")
        }

        fn try_send(&self, transmit: &Transmit) -> io::Result<()> {
            assert_eq!(transmit.segment_size, None, "it would be ignored");
            let mut sent = self.sent.lock().unwrap();
            if sent.len() == self.room {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            sent.push(transmit.contents.to_vec());
            Ok(())
        }

        fn poll_recv(
            &self,
            _: &mut Context,
            _: &mut [IoSliceMut<'_>],
            _: &mut [RecvMeta],
        ) -> Poll<io::Result<usize>> {
            Poll::Pending
        }

        fn local_addr(&self) -> io::Result<SocketAddr> {
            Ok(([127, 0, 0, 1], 1).into())
        }
    }

    /// Send ten bytes in packets of four. Return the result and the packets that were sent.
    fn sent_one_by_one(room: usize) -> (io::Result<()>, Vec<Vec<u8>>) {
        let socket = OneByOne {
            room,
            sent: Mutex::default(),
        };
        let sent = send_over_udp(
            &socket,
            &Transmit {
                destination: ([127, 0, 0, 1], 1).into(),
                ecn: None,
                contents: b"aaaabbbbcc",
                segment_size: Some(4),
                src_ip: None,
            },
        );
        (sent, socket.sent.into_inner().unwrap())
    }

    #[test]
    fn packets_are_sent_one_by_one_where_a_socket_takes_no_more() {
        let (sent, packets) = sent_one_by_one(3);

        assert!(sent.is_ok());
        assert_eq!(packets, [&b"aaaa"[..], b"bbbb", b"cc"]);
    }

    #[test]
    fn a_full_socket_is_an_error_only_before_the_first_packet() {
        let (some, packets) = sent_one_by_one(2);
        let (none, _) = sent_one_by_one(0);

        assert!(some.is_ok());
        assert_eq!(packets.len(), 2);
        assert_eq!(none.unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    fn send(limit: &GsoLimit, packets: usize) {
        limit.record(&Transmit {
            destination: ([127, 0, 0, 1], 1).into(),
            ecn: None,
            contents: &vec![0; packets * 1_200],
            segment_size: (packets > 1).then_some(1_200),
            src_ip: None,
        });
    }

    #[test]
    fn full_transmits_raise_the_limit() {
        let limit = GsoLimit::new();

        for _ in 0..9 {
            send(&limit, limit.allowed());
        }

        assert_eq!(limit.allowed(), MAX_PACKETS);
    }

    #[test]
    fn acknowledgements_between_long_transmits_do_not_lower_the_limit() {
        let limit = GsoLimit::new();

        for _ in 0..100 {
            send(&limit, 10);
            (0..4).for_each(|_| send(&limit, 1));
        }

        assert_eq!(limit.allowed(), MAX_PACKETS);
    }

    #[test]
    fn handshakes_of_agents_that_stay_idle_do_not_raise_the_limit() {
        let limit = GsoLimit::new();

        for _ in 0..100 {
            send(&limit, 2);
            (0..5).for_each(|_| send(&limit, 1));
        }

        assert_eq!(limit.allowed(), MIN_PACKETS);
    }

    #[test]
    fn short_transmits_lower_the_limit() {
        let limit = GsoLimit::new();
        (0..10).for_each(|_| send(&limit, 10));

        (0..1_000).for_each(|_| send(&limit, 1));

        assert_eq!(limit.allowed(), MIN_PACKETS);
    }
}
