//! Visitors that shut down their sending side after a whole request get the answer; those that have gone
//! are noticed.

use std::time::Duration;

use qtunnel::Carrier;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep};

use crate::lab::http2::connect_tls;
use crate::lab::{Lab, Server, Wire, within};

const GET: &str = "GET / HTTP/1.1\r\nhost: blog.localhost\r\n\r\n";

on_each_carrier!(a_visitor_that_half_closes_gets_the_answer);
async fn a_visitor_that_half_closes_gets_the_answer(carrier: Carrier) {
    let lab = Lab::start().await.over(carrier);
    let (upstream, mut wires) = Server::by_hand().await;
    let _agent = lab.agent("blog", &upstream).await;
    for request in [
        GET,
        "POST / HTTP/1.1\r\nhost: blog.localhost\r\ncontent-length: 4\r\n\r\nbody",
        "GET / HTTP/1.0\r\nhost: blog.localhost\r\n\r\n",
    ] {
        let mut visitor = lab.visitor("blog").wire().await;
        visitor.send(request).await;
        visitor.finish().await;
        let mut wire = wires.next().await;
        wire.head().await;

        // Larger than what the edge and the kernel keep.
        let length = 8 << 20;
        wire.send(format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n"
        ))
        .await;
        let sending = tokio::spawn(async move { wire.deliver(length).await });
        let head = visitor.head().await;
        let received = visitor.skip(length).await;

        assert!(head.contains(" 200 OK\r\n"), "{request}: {head}");
        assert_eq!(received, length, "{request}");
        assert_eq!(visitor.rest().await, b"", "the edge closes, too");
        sending.await.unwrap();
    }
}

#[tokio::test]
async fn all_answers_come_to_requests_that_were_sent_before_a_half_close() {
    let lab = Lab::start().await;
    let upstream = Server::echo().await;
    let _agent = lab.agent("blog", &upstream).await;
    let ask = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: blog.localhost\r\n\r\n");
    let mut visitor = lab.visitor("blog").wire().await;

    visitor
        .send([ask("/1"), ask("/2"), ask("/3")].concat())
        .await;
    visitor.finish().await;

    let answers = String::from_utf8(visitor.rest().await).unwrap();
    let targets: Vec<_> = answers
        .lines()
        .filter_map(|line| line.strip_prefix("x-target: "))
        .collect();
    assert_eq!(targets, ["/1", "/2", "/3"], "{answers}");
}

#[tokio::test]
async fn a_half_close_over_tls_is_one_with_and_without_a_word() {
    let lab = Lab::start().await;
    let (upstream, mut wires) = Server::by_hand().await;
    let _agent = lab.agent("blog", &upstream).await;
    for with_a_word in [true, false] {
        let ca = lab.ca();
        let mut visitor = connect_tls(lab.https, "blog.localhost", &ca, b"http/1.1").await;
        visitor.write_all(GET.as_bytes()).await.unwrap();
        match with_a_word {
            // close_notify, and then the end of TCP.
            true => visitor.shutdown().await.unwrap(),
            false => visitor.get_mut().0.shutdown().await.unwrap(),
        }
        let mut wire = wires.next().await;
        wire.head().await;

        sleep(Duration::from_millis(200)).await;
        wire.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
            .await;

        let mut answer = Vec::new();
        let read = within("the answer", visitor.read_to_end(&mut answer)).await;
        let answer = String::from_utf8(answer).unwrap();
        assert!(answer.ends_with("ok"), "{with_a_word}: {read:?} {answer}");
    }
}

on_each_carrier!(a_half_close_before_an_upgrade_is_decided_is_passed_on_after_it);
async fn a_half_close_before_an_upgrade_is_decided_is_passed_on_after_it(carrier: Carrier) {
    let lab = Lab::start().await.over(carrier);
    let (upstream, mut wires) = Server::by_hand().await;
    let _agent = lab.agent("blog", &upstream).await;
    let mut visitor = lab.visitor("blog").wire().await;

    visitor
        .send("GET / HTTP/1.1\r\nhost: blog.localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nearly")
        .await;
    visitor.finish().await;
    let mut wire = wires.next().await;
    wire.head().await;
    wire.send(
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
    )
    .await;

    assert_eq!(wire.rest().await, b"early");
    wire.send("answer").await;
    drop(wire);
    assert!(visitor.head().await.starts_with("HTTP/1.1 101 "));
    assert_eq!(visitor.rest().await, b"answer");
}

/// Start an edge that waits for half-closed visitors for a second, and ask for an answer.
async fn ask(carrier: Carrier) -> (Lab, crate::lab::Running, Wire, Wire) {
    let lab = Lab::with(|config| config.limits.half_closed = SHORT)
        .await
        .over(carrier);
    let (upstream, mut wires) = Server::by_hand().await;
    let agent = lab.agent("blog", &upstream).await;
    let mut visitor = lab.visitor("blog").wire().await;
    visitor.send(GET).await;
    let mut wire = wires.next().await;
    wire.head().await;
    (lab, agent, visitor, wire)
}

const SHORT: Duration = Duration::from_secs(1);

on_each_carrier!(an_answer_to_a_half_closed_visitor_may_begin_at_the_limit_and_not_behind_it);
async fn an_answer_to_a_half_closed_visitor_may_begin_at_the_limit_and_not_behind_it(
    carrier: Carrier,
) {
    let (_lab, _agent, mut visitor, mut wire) = ask(carrier).await;
    visitor.finish().await;
    // Each byte gives it the time again.
    for piece in [
        "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n",
        "f",
        "i",
        "n",
    ] {
        sleep(SHORT / 2).await;
        wire.send(piece).await;
    }
    visitor.until("fin").await;

    let started = Instant::now();
    assert_eq!(wire.rest().await, b"", "the upstream is left alone");

    assert!(started.elapsed() >= SHORT - SHORT / 10);
    assert_eq!(visitor.rest().await, b"");
}

on_each_carrier!(a_visitor_that_has_gone_aborts_the_upstream_request);
async fn a_visitor_that_has_gone_aborts_the_upstream_request(carrier: Carrier) {
    let (_lab, _agent, visitor, mut wire) = ask(carrier).await;
    drop(visitor);
    assert_eq!(wire.rest().await, b"");

    let (_lab, _agent, mut visitor, mut wire) = ask(carrier).await;
    wire.send("HTTP/1.1 200 OK\r\ncontent-length: 100000000000\r\n\r\n")
        .await;
    visitor.head().await;
    drop(visitor);
    // It is the failed write that tells, and long before the time is over.
    within("the upstream's end", wire.pour(100_000_000_000, |_| {})).await;
}

on_each_carrier!(a_visitor_that_resets_its_connection_is_noticed_at_once);
async fn a_visitor_that_resets_its_connection_is_noticed_at_once(carrier: Carrier) {
    let lab = Lab::with(|config| config.limits.half_closed = Duration::from_secs(3600))
        .await
        .over(carrier);
    let (upstream, mut wires) = Server::by_hand().await;
    let _agent = lab.agent("blog", &upstream).await;
    let mut visitor = lab.visitor("blog").connect().await;
    visitor.write_all(GET.as_bytes()).await.unwrap();
    let mut wire = wires.next().await;
    wire.head().await;

    visitor.set_zero_linger().unwrap();
    drop(visitor);

    assert_eq!(wire.rest().await, b"");
}
