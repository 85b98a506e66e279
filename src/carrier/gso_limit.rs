//! How many packets one transmit may have.

use std::io;
use std::sync::atomic::{AtomicIsize, AtomicUsize, Ordering::Relaxed};

use quinn::AsyncUdpSocket;
use quinn::udp::Transmit;

use super::duplicate::saved_transmit;

/// As many as have been of use lately.
///
/// quinn makes room for all that a transmit may have before it knows how much there is to send, and each
/// connection keeps that room: 13 KiB per agent, most of which are idle.
#[derive(Debug)]
pub(crate) struct Segments {
    allowed: AtomicUsize,
    /// How much speaks for more, or for fewer if it is negative.
    need: AtomicIsize,
}

impl Segments {
    pub(crate) fn new() -> Self {
        Self {
            allowed: AtomicUsize::new(FEWEST),
            need: AtomicIsize::new(0),
        }
    }

    /// Return how many packets the next transmit may have.
    pub(crate) fn allowed(&self) -> usize {
        self.allowed.load(Relaxed)
    }

    /// Learn from a transmit.
    pub(crate) fn sent(&self, transmit: &Transmit) {
        let packets = saved_transmit::packets(transmit);
        let allowed = self.allowed();
        let need = match packets {
            full if full >= allowed => self.need.load(Relaxed) + FULL,
            half if half * 2 > allowed => return,
            _ => self.need.load(Relaxed) - 1,
        };
        match need {
            MORE.. => self.allow(allowed * 2),
            ..=FEWER => self.allow(allowed / 2),
            _ => self.need.store(need, Relaxed),
        }
    }

    fn allow(&self, packets: usize) {
        self.allowed.store(packets.clamp(FEWEST, MOST), Relaxed);
        self.need.store(0, Relaxed);
    }
}

/// Send over UDP, in as many transmits as the socket wants.
///
/// One that was made for a WebSocket may have more packets than the socket takes, and so may one from before the
/// kernel was found to have no segmentation offload. Systems that have none (macOS) would send all of it as one
/// packet.
///
/// # Errors
/// If nothing was sent; what the socket does not take after that is lost, as in a network.
pub(crate) fn send_over_udp(udp: &dyn AsyncUdpSocket, transmit: &Transmit) -> io::Result<()> {
    let most = udp.max_transmit_segments().max(1);
    if saved_transmit::packets(transmit) <= most {
        return udp.try_send(transmit);
    }
    let segment = transmit.segment_size.unwrap_or(transmit.contents.len());
    for (nth, contents) in transmit.contents.chunks(most * segment).enumerate() {
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

/// Enough for an agent that says that it is there.
const FEWEST: usize = 2;

/// More than quinn ever puts into one.
const MOST: usize = 16;

/// One full transmit speaks for more as much as so many short ones speak against it: of a handshake's, one in
/// six is full.
const FULL: isize = 5;

/// When more are allowed: after three full transmits.
const MORE: isize = 3 * FULL;

/// When fewer are allowed.
const FEWER: isize = -64;

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

    /// A socket of a system without segmentation offload, that has room for so many packets.
    #[derive(Debug)]
    struct OneByOne {
        room: usize,
        sent: Mutex<Vec<Vec<u8>>>,
    }

    impl AsyncUdpSocket for OneByOne {
        fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
            unimplemented!("nobody waits here")
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

    /// What arrives of ten bytes in packets of four.
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
    fn a_socket_that_is_full_is_waited_for_only_before_the_first_packet() {
        let (some, packets) = sent_one_by_one(2);
        let (none, _) = sent_one_by_one(0);

        assert!(some.is_ok());
        assert_eq!(packets.len(), 2);
        assert_eq!(none.unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    fn send(segments: &Segments, packets: usize) {
        segments.sent(&Transmit {
            destination: ([127, 0, 0, 1], 1).into(),
            ecn: None,
            contents: &vec![0; packets * 1_200],
            segment_size: (packets > 1).then_some(1_200),
            src_ip: None,
        });
    }

    #[test]
    fn whoever_sends_much_soon_may_send_it_at_once() {
        let segments = Segments::new();

        for _ in 0..9 {
            send(&segments, segments.allowed());
        }

        assert_eq!(segments.allowed(), MOST);
    }

    #[test]
    fn acknowledgements_between_long_transmits_change_nothing() {
        let segments = Segments::new();

        for _ in 0..100 {
            send(&segments, 10);
            (0..4).for_each(|_| send(&segments, 1));
        }

        assert_eq!(segments.allowed(), MOST);
    }

    #[test]
    fn agents_that_come_and_stay_idle_change_nothing() {
        let segments = Segments::new();

        for _ in 0..100 {
            send(&segments, 2);
            (0..5).for_each(|_| send(&segments, 1));
        }

        assert_eq!(segments.allowed(), FEWEST);
    }

    #[test]
    fn when_little_is_sent_little_room_is_made() {
        let segments = Segments::new();
        (0..10).for_each(|_| send(&segments, 10));

        (0..1_000).for_each(|_| send(&segments, 1));

        assert_eq!(segments.allowed(), FEWEST);
    }
}
