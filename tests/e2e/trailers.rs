//! Fields behind a body.

use bytes::Bytes;
use http_body_util::BodyExt;
use http_body_util::channel::Channel;
use hyper::body::{Frame, Incoming};
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::{Request, Response};
use qtunnel::Carrier;

use crate::lab::head::{field, text};
use crate::lab::visitor::collect;
use crate::lab::{Lab, Server};

on_each_carrier!(trailers_pass_in_both_directions_over_http1);
async fn trailers_pass_in_both_directions_over_http1(carrier: Carrier) {
    // hyper writes trailers in HTTP/1.1 only if `Trailer` announces them and, to a visitor, only if
    // `TE: trailers` asks for them.
    let lab = Lab::start().await.over(carrier);
    let (upstream, mut wires) = Server::by_hand().await;
    let _agent = lab.agent("blog", &upstream).await;
    let mut visitor = lab.visitor("blog").wire().await;

    visitor
        .send(
            "POST / HTTP/1.1\r\nhost: blog.localhost\r\nte: trailers\r\nconnection: te\r\ntrailer: x-sum\r\n\
             transfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nx-sum: 7\r\n\r\n",
        )
        .await;
    let mut wire = wires.next().await;
    let head = wire.head().await;
    let body = text(&wire.until("\r\n\r\n").await);
    wire.send("HTTP/1.1 200 OK\r\ntrailer: x-sum\r\ntransfer-encoding: chunked\r\n\r\n2\r\nho\r\n0\r\nx-sum: 8\r\n\r\n").await;
    let answer = [visitor.head().await, text(&visitor.until("\r\n\r\n").await)].concat();

    assert_eq!(field(&head, "trailer"), Some("x-sum"));
    assert_eq!(field(&head, "te"), Some("trailers"));
    assert_eq!(body, "2\r\nhi\r\n0\r\nx-sum: 7\r\n\r\n");
    assert_eq!(field(&answer, "trailer"), Some("x-sum"));
    assert!(
        answer.ends_with("\r\n\r\n2\r\nho\r\n0\r\nx-sum: 8\r\n\r\n"),
        "{answer}"
    );
}

on_each_carrier!(trailers_pass_in_both_directions_over_http2);
async fn trailers_pass_in_both_directions_over_http2(carrier: Carrier) {
    let lab = Lab::public().await.over(carrier);
    let upstream = Server::h2c(|request: Request<Incoming>| async move {
        let body = request.into_body().collect().await.expect("a body");
        let (mut sender, body_back) = Channel::<Bytes>::new(2);
        let sum = body.trailers().expect("trailers")["x-sum"].clone();
        sender.send_data(body.to_bytes()).await.expect("room");
        sender
            .send_trailers(HeaderMap::from_iter([(SUM, sum)]))
            .await
            .expect("room");
        Response::new(body_back)
    })
    .await;
    let _agent = lab.agent("blog", &upstream).await;
    let visitor = lab.http2("blog").await;
    let sum = HeaderMap::from_iter([(SUM, HeaderValue::from_static("7"))]);
    let (mut upload, body) = Channel::<Bytes>::new(2);
    upload.send(Frame::data("hi".into())).await.unwrap();
    upload.send_trailers(sum.clone()).await.unwrap();
    drop(upload);

    let response = visitor
        .begin(
            Request::post(visitor.uri("/")).header("te", "trailers"),
            body,
        )
        .await;
    let reply = collect(response.unwrap()).await;

    assert_eq!(reply.text(), "hi");
    assert_eq!(reply.trailers, Some(sum));
}

on_each_carrier!(trailers_that_would_have_been_needed_earlier_are_left_out);
async fn trailers_that_would_have_been_needed_earlier_are_left_out(carrier: Carrier) {
    let lab = Lab::start().await.over(carrier);
    let (upstream, mut wires) = Server::by_hand().await;
    let _agent = lab.agent("blog", &upstream).await;
    let mut visitor = lab.visitor("blog").wire().await;

    visitor
        .send(
            "POST / HTTP/1.1\r\nhost: blog.localhost\r\ntrailer: x-sum, content-length, x-forwarded-for, authorization\r\n\
             transfer-encoding: chunked\r\n\r\n0\r\nx-sum: 7\r\ncontent-length: 5\r\nx-forwarded-for: 1.2.3.4\r\n\
             authorization: x\r\n\r\n",
        )
        .await;
    let mut wire = wires.next().await;
    wire.head().await;

    assert_eq!(text(&wire.until("\r\n\r\n").await), "0\r\nx-sum: 7\r\n\r\n");
}

const SUM: HeaderName = HeaderName::from_static("x-sum");
