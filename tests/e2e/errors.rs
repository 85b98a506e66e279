//! The errors that a visitor meets, each with a real cause.

use std::time::Duration;

use hyper::Request;
use qtunnel::{Address, Carrier, Event, RequestRecord};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::lab::{Lab, Reply, Running, Server, Visitor, within};

/// Meet the same error as a program, as a browser and as a script, and check all that must hold of
/// any of them. Returns what the person at a terminal reads.
async fn meet(visitor: &Visitor, path: &str, status: u16, code: &str) -> Reply {
    let ask = |accept: &'static str| visitor.send(Request::get(path).header("accept", accept));
    let browser = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";
    let (text, html, json) = (
        ask("*/*").await,
        ask(browser).await,
        ask("application/json").await,
    );

    for (reply, kind) in [
        (&text, "text/plain; charset=utf-8"),
        (&html, "text/html; charset=utf-8"),
        (&json, "application/json"),
    ] {
        assert_eq!(reply.status, status, "{}", reply.text());
        assert_eq!(reply.header("x-qtunnel-error"), code);
        assert_eq!(reply.header("content-type"), kind);
        assert_eq!(reply.header("cache-control"), "no-store");
        assert!(reply.text().contains(code), "{}", reply.text());
        // Nothing of the inside: neither addresses nor paths.
        assert!(!reply.text().contains("127.0.0.1"), "{}", reply.text());
    }
    assert!(
        html.text().starts_with("<!doctype html>"),
        "{}",
        html.text()
    );
    let json: serde_json::Value = serde_json::from_slice(&json.body).expect("JSON");
    assert_eq!(
        (&json["error"], &json["status"]),
        (&code.into(), &status.into())
    );
    assert!(
        json["message"].is_string() && json["next"].is_string(),
        "{json}"
    );
    text
}

/// Wait for the agent's line about a request that failed.
async fn logged(agent: &mut Running) -> RequestRecord {
    agent
        .event(|event| match event {
            Event::Request(log) if log.problem.is_some() => Some(log.clone()),
            _ => None,
        })
        .await
}

#[tokio::test]
async fn a_name_that_nobody_holds_is_not_found() {
    let lab = Lab::start().await;

    let reply = meet(&lab.visitor("nobody"), "/", 404, "no_such_tunnel").await;

    assert!(reply.text().contains("qtunnel connect"), "{}", reply.text());
    let domain = Visitor::new(lab.http, "localhost".into());
    meet(&domain, "/", 404, "no_such_tunnel").await;
    let elsewhere = Visitor::new(lab.http, "blog.example.com".into());
    meet(&elsewhere, "/", 404, "no_such_tunnel").await;
}

on_each_carrier!(an_upstream_that_is_down_is_named_in_the_agents_log_only);
async fn an_upstream_that_is_down_is_named_in_the_agents_log_only(carrier: Carrier) {
    let lab = Lab::start().await.over(carrier);
    let gone = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap()
    };
    let address: Address = gone.to_string().parse().unwrap();
    let mut agent = lab.agent("blog", address).await;

    meet(&lab.visitor("blog"), "/", 502, "upstream_unreachable").await;

    let log = logged(&mut agent).await;
    let problem = log.problem.unwrap();
    assert!(problem.contains(&gone.to_string()), "{problem}");
    assert!(problem.contains("refused"), "{problem}");
    assert_eq!(log.status, Some(502), "the log has what the visitor saw");
}

on_each_carrier!(an_upstream_socket_that_is_missing_is_named_in_the_agents_log_only);
async fn an_upstream_socket_that_is_missing_is_named_in_the_agents_log_only(carrier: Carrier) {
    let lab = Lab::start().await.over(carrier);
    let address: Address = "unix:/run/secret-place/app.sock".parse().unwrap();
    let mut agent = lab.agent("blog", address).await;

    let reply = meet(&lab.visitor("blog"), "/", 502, "upstream_unreachable").await;

    assert!(!reply.text().contains("secret-place"), "{}", reply.text());
    let problem = logged(&mut agent).await.problem.unwrap();
    assert!(problem.contains("/run/secret-place/app.sock"), "{problem}");
}

on_each_carrier!(an_upstream_that_does_not_answer_in_time_is_a_gateway_timeout);
async fn an_upstream_that_does_not_answer_in_time_is_a_gateway_timeout(carrier: Carrier) {
    let lab = Lab::start().await.over(carrier);
    let (upstream, _arrived) = Server::silent().await;
    let mut agent = lab
        .agent_with("blog", &upstream, |agent| {
            agent.upstream_timeout = Duration::from_millis(50);
        })
        .await;

    let reply = meet(&lab.visitor("blog"), "/", 504, "upstream_timeout").await;

    assert!(
        reply.text().contains("--upstream-timeout"),
        "{}",
        reply.text()
    );
    let log = logged(&mut agent).await;
    let problem = log.problem.unwrap();
    assert!(problem.contains(&upstream.addr.to_string()), "{problem}");
    assert!(problem.contains("50ms"), "{problem}");
    assert_eq!(log.status, Some(504));
}

on_each_carrier!(an_upstream_that_does_not_speak_http_is_a_bad_gateway);
async fn an_upstream_that_does_not_speak_http_is_a_bad_gateway(carrier: Carrier) {
    let lab = Lab::start().await.over(carrier);
    let upstream = Server::raw(|mut stream| async move {
        let _ = stream.write_all(b"SSH-2.0-OpenSSH_9.9\r\n").await;
        let _ = stream.read(&mut [0; 4096]).await;
    })
    .await;
    let mut agent = lab.agent("blog", &upstream).await;

    meet(&lab.visitor("blog"), "/", 502, "upstream_invalid").await;

    let log = logged(&mut agent).await;
    let problem = log.problem.unwrap();
    assert!(problem.contains(&upstream.addr.to_string()), "{problem}");
    assert_eq!(log.status, Some(502));
}

on_each_carrier!(an_upstream_that_hangs_up_before_it_answers_is_a_bad_gateway);
async fn an_upstream_that_hangs_up_before_it_answers_is_a_bad_gateway(carrier: Carrier) {
    let lab = Lab::start().await.over(carrier);
    let upstream = Server::raw(|mut stream| async move {
        let _ = stream.read(&mut [0; 4096]).await;
    })
    .await;
    let _agent = lab.agent("blog", &upstream).await;

    meet(&lab.visitor("blog"), "/", 502, "upstream_invalid").await;
}

on_each_carrier!(paths_of_the_edge_are_its_own_on_every_host);
async fn paths_of_the_edge_are_its_own_on_every_host(carrier: Carrier) {
    let lab = Lab::start().await.over(carrier);
    let upstream = Server::text("mine").await;
    let _agent = lab.agent("blog", &upstream).await;

    meet(&lab.visitor("blog"), "/_qtunnel/x", 404, "not_found").await;
}

#[tokio::test]
async fn a_head_or_a_target_that_is_too_large_is_told_so() {
    let lab = Lab::start().await;
    let visitor = lab.visitor("blog");
    let refused = |request: String| {
        let visitor = visitor.clone();
        async move { String::from_utf8(visitor.raw(request).await).unwrap() }
    };

    let target = refused(format!(
        "GET /{} HTTP/1.1\r\nhost: blog.localhost\r\n\r\n",
        "x".repeat(9 << 10)
    ))
    .await;
    let head = refused(format!(
        "GET / HTTP/1.1\r\nhost: blog.localhost\r\nx: {}\r\n\r\n",
        "x".repeat(17 << 10)
    ))
    .await;
    let fields = refused(format!(
        "GET / HTTP/1.1\r\nhost: blog.localhost\r\n{}\r\n",
        "x: y\r\n".repeat(100)
    ))
    .await;

    for (answer, status, code) in [
        (&target, "414", "target_too_long"),
        (&head, "431", "head_too_large"),
        (&fields, "431", "head_too_large"),
    ] {
        let expected = (
            format!("HTTP/1.1 {status} "),
            format!("x-qtunnel-error: {code}\r\n"),
        );
        assert!(answer.starts_with(&expected.0), "{answer}");
        assert!(answer.contains(&expected.1), "{answer}");
    }
}

#[tokio::test]
async fn an_answer_to_head_has_no_body() {
    let lab = Lab::start().await;

    let reply = lab.visitor("nobody").send(Request::head("/")).await;

    let code = reply.header("x-qtunnel-error");
    assert_eq!((reply.status, code), (404, "no_such_tunnel"));
    assert!(reply.body.is_empty());
}

on_each_carrier!(an_upstream_that_dies_in_its_answer_is_never_presented_as_complete);
async fn an_upstream_that_dies_in_its_answer_is_never_presented_as_complete(carrier: Carrier) {
    let lab = Lab::start().await.over(carrier);
    let (die, told) = tokio::sync::watch::channel(false);
    let upstream = Server::raw(move |mut stream| {
        let mut told = told.clone();
        async move {
            let _ = stream.read(&mut [0; 4096]).await;
            let head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n";
            let _ = stream.write_all(head).await;
            let _ = told.wait_for(|told| *told).await;
        }
    })
    .await;
    let mut agent = lab.agent("blog", &upstream).await;
    let mut visitor = lab.visitor("blog").connect().await;
    let request = b"GET / HTTP/1.1\r\nhost: blog.localhost\r\n\r\n";
    visitor.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"first\r\n") {
        let n = within("the beginning", visitor.read_buf(&mut answer)).await;
        assert!(n.unwrap() > 0, "{}", String::from_utf8_lossy(&answer));
    }

    die.send_replace(true);

    let mut rest = Vec::new();
    // Closed or reset: either is visible.
    let _ = within("the close", visitor.read_to_end(&mut rest)).await;
    assert_eq!(rest, b"", "no last chunk");
    let problem = logged(&mut agent).await.problem.unwrap();
    assert!(problem.contains(&upstream.addr.to_string()), "{problem}");
}
