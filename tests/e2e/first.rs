//! The main job.

use std::time::Duration;

use qtunnel::Carrier;

use crate::lab::process::Process;
use crate::lab::{Lab, Server};

on_each_carrier!(a_visitor_reaches_a_local_server_under_a_public_name);
async fn a_visitor_reaches_a_local_server_under_a_public_name(carrier: Carrier) {
    let lab = Lab::start().await.over(carrier);
    let upstream = Server::echo().await;
    let agent = lab.agent("blog", &upstream).await;

    let reply = lab.visitor("blog").post("/a/b?c=d", "hello").await;

    assert_eq!((reply.status, reply.text()), (200, "hello"));
    assert_eq!(reply.header("x-target"), "/a/b?c=d");
    assert_eq!(reply.header("x-host"), "blog.localhost");
    assert!(
        agent.urls[0].starts_with("http://blog.localhost:"),
        "{:?}",
        agent.urls
    );
}

on_each_carrier!(a_body_larger_than_every_buffer_comes_back_whole);
async fn a_body_larger_than_every_buffer_comes_back_whole(carrier: Carrier) {
    let lab = Lab::start().await.over(carrier);
    let upstream = Server::echo().await;
    let _agent = lab.agent("echo", &upstream).await;
    let body: Vec<u8> = (0..24u32 << 20)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();

    let reply = lab.visitor("echo").post("/", body.clone()).await;

    assert!(reply.body == body, "{} bytes came back", reply.body.len());
}

#[tokio::test]
async fn the_name_is_free_as_soon_as_the_agent_has_left() {
    let lab = Lab::with(|edge| edge.hold = Duration::ZERO).await;
    let upstream = Server::text("one").await;
    let agent = lab.agent("blog", &upstream).await;
    agent.stop().await.unwrap();

    let reply = lab.visitor("blog").get("/").await;

    assert_eq!(
        (reply.status, reply.header("x-qtunnel-error")),
        (502, "agent_offline")
    );
    let _another = lab.agent("blog", &upstream).await;
    assert_eq!(lab.visitor("blog").get("/").await.status, 200);
}

#[tokio::test]
async fn the_demo_prints_a_url_that_answers_and_stops_cleanly() {
    let home = tempfile::tempdir().unwrap();
    let mut demo = Process::qtunnel(home.path(), ["demo", "--port", "0"]);
    let line = demo.line("http://").await;
    let url: hyper::Uri = line.split_whitespace().next().unwrap().parse().unwrap();
    let addr = ([127, 0, 0, 1], url.port_u16().unwrap()).into();
    let visitor = crate::lab::Visitor::new(addr, url.host().unwrap().to_owned());

    let reply = visitor.get("/hello").await;

    assert!(reply.text().contains("GET /hello"), "{}", reply.text());
    demo.line("/hello").await;
    demo.signal(nix::sys::signal::Signal::SIGINT);
    assert_eq!(demo.ended().await.code(), Some(0), "{:#?}", demo.seen);
}
