//! Tests of the windows, in paused time.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, advance, timeout};

use super::{
    Budget, BufferTotal, FIRST_WINDOW, FlowControl, MAX_VIOLATIONS, MAX_WINDOW, ReceiveWindow,
    SPARE_UPDATES, SendWindow, SharedWindow,
};
use crate::proto::{Close, MIN_WINDOW, WINDOW_STEP, Window};

const MIB: u64 = 1 << 20;
const RTT: Duration = Duration::from_millis(40);

/// Bytes that buffers on the path take of a body that nobody reads.
const SWALLOWED: u64 = 400 << 10;

fn session(limit: u64, total: &Arc<BufferTotal>) -> Arc<FlowControl> {
    let budget = Budget::new(limit, total.clone());
    FlowControl::new(|| RTT, || false, |_, _| (), budget, |_| ())
}

/// Return both ends of a session, with plenty of memory.
fn ends() -> [Arc<FlowControl>; 2] {
    [(); 2].map(|()| session(64 * MIB, &BufferTotal::new(64 * MIB)))
}

/// Deliver one end's pending window updates to the other.
async fn deliver_updates(reader: &FlowControl, writer: &FlowControl) {
    if let Ok(windows) = timeout(Duration::ZERO, reader.window_updates()).await {
        let mut windows = windows.into_iter();
        windows.try_for_each(|window| writer.raise(window)).unwrap();
    }
}

/// Return the bytes that may still arrive.
fn open_window(window: &ReceiveWindow) -> u64 {
    window.limit() - window.read
}

/// Receive some bytes, and read them.
fn receive(window: &mut ReceiveWindow, bytes: u64) {
    window.receive(bytes).unwrap();
    window.take(bytes);
}

/// Receive and read as much as the other end may send.
fn read_all(window: &mut ReceiveWindow) {
    let all = open_window(window);
    receive(window, all);
}

#[tokio::test(start_paused = true)]
async fn a_short_body_needs_no_window_update() {
    let [reader, writer] = ends();
    let mut incoming = ReceiveWindow::new(reader.clone(), 0);
    let mut outgoing = SendWindow::new(writer, 0, incoming.limit());

    assert_eq!(outgoing.take(60 << 10), 60 << 10);
    receive(&mut incoming, 60 << 10);

    assert!(
        timeout(Duration::ZERO, reader.window_updates())
            .await
            .is_err()
    );
}

#[tokio::test(start_paused = true)]
async fn a_long_body_waits_for_its_reader_and_loses_nothing() {
    let [reader, writer] = ends();
    let mut incoming = ReceiveWindow::new(reader.clone(), 7);
    let mut outgoing = SendWindow::new(writer.clone(), 7, incoming.limit());
    let mut sent = 0;

    while sent < 20 * MIB {
        let mut unread = 0;
        loop {
            match outgoing.take(10_000) {
                0 => break,
                taken => unread += taken,
            }
        }
        assert!(unread > 0, "stuck after {sent} bytes");
        sent += unread as u64;
        advance(Duration::from_secs(1)).await;
        receive(&mut incoming, unread as u64);
        deliver_updates(&reader, &writer).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_blocked_sender_resumes_after_a_window_update() {
    let [reader, writer] = ends();
    let mut incoming = ReceiveWindow::new(reader.clone(), 1);
    let mut outgoing = SendWindow::new(writer.clone(), 1, incoming.limit());
    assert_eq!(outgoing.take(MIB as usize) as u64, FIRST_WINDOW);
    assert_eq!(outgoing.take(1), 0);

    let read_later = async {
        receive(&mut incoming, FIRST_WINDOW);
        deliver_updates(&reader, &writer).await;
    };
    tokio::join!(outgoing.raised(), read_later);

    assert!(outgoing.take(1) > 0);
}

#[tokio::test(start_paused = true)]
async fn a_window_grows_while_its_reader_keeps_up_to_its_maximum() {
    let [reader, _] = ends();
    let mut incoming = ReceiveWindow::new(reader, 0);

    for _ in 0..100 {
        advance(RTT).await;
        read_all(&mut incoming);
    }

    assert_eq!(open_window(&incoming), MAX_WINDOW);
}

#[tokio::test(start_paused = true)]
async fn a_slow_readers_window_stays_small() {
    let [reader, _] = ends();
    let mut incoming = ReceiveWindow::new(reader, 0);

    for _ in 0..100 {
        advance(Duration::from_secs(1)).await;
        receive(&mut incoming, 10_000);
    }

    assert!(open_window(&incoming) <= FIRST_WINDOW);
}

#[tokio::test(start_paused = true)]
async fn many_conversations_stay_within_the_sessions_budget() {
    let total = BufferTotal::new(512 * MIB);
    let flow = session(64 * MIB, &total);

    let mut open: Vec<_> = (0..1_000)
        .map(|stream| ReceiveWindow::new(flow.clone(), stream))
        .collect();
    for _ in 0..20 {
        advance(RTT).await;
        open.iter_mut().for_each(read_all);
    }

    let waiting: u64 = open.iter().map(open_window).sum();
    assert!(waiting <= 64 * MIB + 1_000 * MIN_WINDOW, "{waiting}");
}

#[tokio::test(start_paused = true)]
async fn an_active_reader_finds_room_beside_many_stopped_ones() {
    let flow = session(24 * MIB, &BufferTotal::new(512 * MIB));
    let mut stuck: Vec<_> = (0..500)
        .map(|stream| ReceiveWindow::new(flow.clone(), stream))
        .collect();
    // They seem quick until all buffers on the path to them are full.
    for window in &mut stuck {
        while let more @ 1.. = open_window(window).min(SWALLOWED - window.read) {
            receive(window, more);
        }
    }
    let waiting: u64 = stuck.iter().map(open_window).sum();
    assert!(waiting <= 16 * MIB, "{waiting}");

    let mut reader = ReceiveWindow::new(flow, 1_000);
    for _ in 0..50 {
        advance(RTT).await;
        read_all(&mut reader);
    }

    assert!(open_window(&reader) >= 2 * MIB, "{}", open_window(&reader));
}

#[tokio::test(start_paused = true)]
async fn all_sessions_together_stay_within_the_total() {
    let total = BufferTotal::new(16 * MIB);
    let flows: Vec<_> = (0..8).map(|_| session(64 * MIB, &total)).collect();

    let mut open: Vec<_> = flows
        .iter()
        .flat_map(|flow| (0..8).map(|stream| ReceiveWindow::new(flow.clone(), stream)))
        .collect();
    for _ in 0..20 {
        advance(RTT).await;
        open.iter_mut().for_each(read_all);
    }

    let waiting: u64 = open.iter().map(open_window).sum();
    assert!(waiting <= 16 * MIB + 64 * MIN_WINDOW, "{waiting}");
}

#[tokio::test(start_paused = true)]
async fn a_conversations_memory_is_released_for_the_next() {
    let total = BufferTotal::new(64 * MIB);
    let flow = session(64 * MIB, &total);
    for stream in 0..1_000 {
        let mut window = ReceiveWindow::new(flow.clone(), stream);
        assert_eq!(window.limit(), FIRST_WINDOW);
        window.expect(1_000 * stream);
        receive(&mut window, (1_000 * stream).min(FIRST_WINDOW));
    }

    drop(flow);

    assert_eq!(total.used.load(Relaxed), 0);
}

#[tokio::test(start_paused = true)]
async fn exceeding_the_window_is_an_error() {
    let [reader, _] = ends();
    let mut incoming = ReceiveWindow::new(reader, 0);

    assert!(incoming.receive(FIRST_WINDOW + 1).is_err());
}

#[tokio::test(start_paused = true)]
async fn received_bytes_count_until_they_are_written() {
    let total = BufferTotal::new(64 * MIB);
    let reader = session(64 * MIB, &total);
    let window = SharedWindow::new(ReceiveWindow::new(reader.clone(), 7));
    let piece = || Bytes::from(vec![7; FIRST_WINDOW as usize / 2]);

    let queued = [piece(), piece()].map(|piece| window.receive(piece).unwrap());

    assert!(
        timeout(Duration::ZERO, reader.window_updates())
            .await
            .is_err()
    );
    assert_eq!(total.used.load(Relaxed), FIRST_WINDOW);
    assert!(window.receive(Bytes::from_static(b"x")).is_err());
    drop(queued);
    assert!(
        timeout(Duration::ZERO, reader.window_updates())
            .await
            .is_ok()
    );
}

#[tokio::test(start_paused = true)]
async fn only_unread_bytes_of_an_ended_body_count() {
    let total = BufferTotal::new(64 * MIB);
    let reader = session(64 * MIB, &total);
    let window = SharedWindow::new(ReceiveWindow::new(reader.clone(), 7));
    let queued = [30, 70].map(|length| window.receive(vec![7; length].into()).unwrap());

    window.close();
    drop(window);

    let [thirty, seventy] = queued;
    assert_eq!(total.used.load(Relaxed), 100);
    drop(thirty);
    assert_eq!(total.used.load(Relaxed), 70);
    assert_eq!(seventy.into_bytes().len(), 70);
    assert_eq!(total.used.load(Relaxed), 0);
    assert!(
        timeout(Duration::ZERO, reader.window_updates())
            .await
            .is_err()
    );
}

#[tokio::test(start_paused = true)]
async fn a_reader_is_stalled_since_it_last_took_something() {
    let [reader, _] = ends();
    let window = SharedWindow::new(ReceiveWindow::new(reader, 7));
    assert_eq!(window.stalled_since(), None);
    advance(RTT).await;

    let queued = [1, 1].map(|length| window.receive(vec![7; length].into()).unwrap());
    let came = Instant::now();
    assert_eq!(window.stalled_since(), Some(came));
    advance(RTT).await;
    let [first, second] = queued;
    drop(first);

    assert_eq!(window.stalled_since(), Some(came + RTT));
    drop(second);
    assert_eq!(window.stalled_since(), None);
}

#[test]
fn large_heads_share_a_limit_and_release_their_memory() {
    let [flow, _] = ends();
    let window = ReceiveWindow::new(flow, 0);
    let large = || window.large_head(1 << 20);

    let heads: Vec<_> = std::iter::from_fn(|| large().ok()).collect();
    assert_eq!(heads.len(), 32);
    drop(heads);

    assert!(large().is_ok());
}

#[tokio::test(start_paused = true)]
async fn more_window_updates_than_sent_bytes_allow_are_an_error() {
    let [flow, _] = ends();
    let mut outgoing = SendWindow::new(flow.clone(), 0, FIRST_WINDOW);
    outgoing.take(FIRST_WINDOW as usize);
    let honest = FIRST_WINDOW / WINDOW_STEP + SPARE_UPDATES as u64;
    let notice = |limit| Window { stream: 0, limit };

    for limit in 0..honest {
        flow.raise(notice(limit)).unwrap();
    }

    assert!(flow.raise(notice(u64::MAX)).is_err());
}

#[tokio::test(start_paused = true)]
async fn repeated_protocol_violations_close_the_session() {
    let (close, mut closed) = tokio::sync::mpsc::unbounded_channel();
    let budget = Budget::new(MIB, BufferTotal::new(MIB));
    let close = move |code, _: &str| close.send(code).unwrap();
    let flow = FlowControl::new(|| RTT, || false, close, budget, |_| ());

    for stream in 0..u64::from(MAX_VIOLATIONS) - 1 {
        flow.report_violation(stream, &"a lie");
    }
    assert!(closed.try_recv().is_err());
    flow.report_violation(99, &"another");
    flow.report_violation(100, &"another");

    assert_eq!(closed.try_recv(), Ok(Close::Protocol));
    assert!(closed.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn an_empty_window_blocks_its_sender() {
    let [flow, _] = ends();
    let mut outgoing = SendWindow::new(flow, 0, 0);
    assert_eq!(outgoing.take(1), 0);

    let waited = timeout(RTT, outgoing.raised()).await;

    assert!(waited.is_err());
}
