//! Answers that come before the request's body has: visitors must see them, whatever they still send.

use std::time::Duration;

use qtunnel::Carrier;
use tokio::time::Instant;

use crate::lab::frames::{DATA, END_STREAM, HEADERS, RST_STREAM, frame};
use crate::lab::process::{run, succeed};
use crate::lab::{Lab, Server, tools};

/// An upstream that takes nothing of a body.
async fn refusing() -> Server {
    Server::raw(|mut stream| async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut read = Vec::new();
        while !read.windows(4).any(|end| end == b"\r\n\r\n") {
            if !matches!(stream.read_buf(&mut read).await, Ok(1..)) {
                return;
            }
        }
        let answer =
            "HTTP/1.1 413 Payload Too Large\r\ncontent-length: 4\r\nconnection: close\r\n\r\nmuch";
        let _ = stream.write_all(answer.as_bytes()).await;
        let _ = stream.shutdown().await;
        // A server that lingers, as nginx does.
        while matches!(stream.read(&mut [0; 4096]).await, Ok(1..)) {}
    })
    .await
}

/// Names of tunnels, and what an upload to them is answered with: by an upstream, and by the edge.
const EARLY: [(&str, &str); 2] = [("blog", "413"), ("nobody", "404")];

on_each_carrier!(curl_sees_early_answers_over_any_version_of_http);
async fn curl_sees_early_answers_over_any_version_of_http(carrier: Carrier) {
    let Some(curl) = tools::program("curl") else {
        return;
    };
    let lab = Lab::start().await.over(carrier);
    let upstream = refusing().await;
    let _agent = lab.agent("blog", &upstream).await;
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("large"), vec![7; 5_000_000]).unwrap();

    for (name, status) in EARLY {
        for (version, scheme, port) in [
            ("--http2", "https", lab.https.port()),
            ("--http1.1", "https", lab.https.port()),
            ("--http1.1", "http", lab.http.port()),
        ] {
            let mut command = curl.command();
            command
                .current_dir(directory.path())
                .args(["--disable", "--silent", "--show-error", "--max-time", "30"])
                .args([version, "--header", "Expect:", "--data-binary", "@large"])
                .args(["--output", "/dev/null", "--write-out", "%{response_code}"])
                .arg("--cacert")
                .arg(lab.ca())
                .arg(format!("{scheme}://{name}.localhost:{port}/"));
            let finished = run(command).await;

            let said = String::from_utf8(finished.stdout.clone()).unwrap();
            assert_eq!(said, status, "{version} {scheme} {name}: {finished:#?}");
        }
    }
}

on_each_carrier!(node_sees_early_answers_and_the_end_of_the_stream);
async fn node_sees_early_answers_and_the_end_of_the_stream(carrier: Carrier) {
    let Some(node) = tools::program("node") else {
        return;
    };
    let lab = Lab::start().await.over(carrier);
    let upstream = refusing().await;
    let _agent = lab.agent("blog", &upstream).await;

    for (name, status) in EARLY {
        let mut command = node.script("upload.mjs");
        command
            .arg(format!("https://{name}.localhost:{}", lab.https.port()))
            .arg(lab.ca());
        let said = succeed(command).await;

        assert_eq!(said, format!("{status} closed 0\n"), "{name}");
    }
}

on_each_carrier!(nghttp_sees_early_answers);
async fn nghttp_sees_early_answers(carrier: Carrier) {
    let Some(nghttp) = tools::program("nghttp") else {
        return;
    };
    let lab = Lab::start().await.over(carrier);
    let upstream = refusing().await;
    let _agent = lab.agent("blog", &upstream).await;
    let directory = tempfile::tempdir().unwrap();
    let large = directory.path().join("large");
    std::fs::write(&large, vec![7; 5_000_000]).unwrap();

    for (name, status) in EARLY {
        let mut command = nghttp.command();
        command
            .args(["--verbose", "--no-verify-peer", "--timeout=30s", "--data"])
            .arg(&large)
            .arg(format!("--header=:authority: {name}.localhost"))
            .arg(format!("https://{}/", lab.https));
        let said = run(command).await;

        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        assert!(said.contains(&format!(":status: {status}")), "{said}");
    }
}

#[tokio::test]
async fn a_stream_is_reset_some_time_after_the_answer_and_in_a_record_of_its_own() {
    let discard = Duration::from_millis(500);
    let lab = Lab::with(|config| config.limits.discard = discard).await;
    let upstream = refusing().await;
    let _agent = lab.agent("blog", &upstream).await;
    for (name, length) in [("blog", 4), ("nobody", 0)] {
        let mut visitor = lab.frames(name).await;
        visitor.begin(&[]).await;
        visitor.post(1, &[]).await;
        visitor.send(&frame(DATA, 0, 1, &[7; 1000])).await;

        assert_eq!(visitor.next_of(1).await.kind, HEADERS);
        assert!(visitor.body(1).await.len() >= length);
        let answered = Instant::now();
        let reset = visitor.next_of(1).await;

        assert_eq!((reset.kind, &reset.payload[..]), (RST_STREAM, &[0; 4][..]));
        assert!(answered.elapsed() >= discard / 2 && !reset.is_together);
    }
}

#[tokio::test]
async fn an_upload_that_ends_after_its_answer_is_not_reset() {
    let lab = Lab::with(|config| config.limits.discard = Duration::from_secs(3600)).await;
    let mut visitor = lab.frames("nobody").await;
    visitor.begin(&[]).await;
    visitor.post(1, &[]).await;
    visitor.body(1).await;

    visitor.send(&frame(DATA, END_STREAM, 1, b"the end")).await;

    visitor.get(3).await;
    let next = visitor.next().await.unwrap();
    assert_eq!((next.kind, next.stream), (HEADERS, 3));
}

#[tokio::test]
async fn no_more_is_discarded_than_the_limit_and_a_window() {
    let lab = Lab::with(|config| {
        config.limits.discard = Duration::from_secs(2);
        config.limits.discard_bytes = 100_000;
    })
    .await;
    let visitor = lab.http2("nobody").await;
    let (mut upload, body) = http_body_util::channel::Channel::<bytes::Bytes>::new(1);
    let request = hyper::Request::post(visitor.uri("/"));

    let response = visitor.begin(request, body).await.unwrap();
    let mut sent = 0;
    while upload.send_data(vec![7; 10_000].into()).await.is_ok() {
        sent += 10_000;
    }

    assert_eq!(response.status(), 404);
    // What hyper's client keeps comes on top of the window of 1 MiB.
    assert!((100_000..4 << 20).contains(&sent), "{sent}");
}

#[tokio::test]
async fn an_answer_over_http1_survives_what_is_sent_behind_it() {
    let lab = Lab::start().await;
    // An upload without an end, and requests behind the last one that is answered.
    for (request, more) in [
        (
            "POST / HTTP/1.1\r\nhost: nobody.localhost\r\ncontent-length: 3000000\r\n\r\n",
            vec![7; 3_000_000],
        ),
        (
            "GET / HTTP/1.1\r\nhost: nobody.localhost\r\nconnection: close\r\n\r\n",
            b"GET / HTTP/1.1\r\nhost: nobody.localhost\r\n\r\n".repeat(20_000),
        ),
    ] {
        let mut visitor = lab.visitor("nobody").wire().await;
        visitor.send(request).await;
        visitor.send(more).await;

        let head = visitor.head().await;
        let rest = String::from_utf8(visitor.rest().await).unwrap();

        assert!(head.starts_with("HTTP/1.1 404 "), "{head}");
        assert!(rest.starts_with("404 no_such_tunnel"), "{rest}");
    }
}
