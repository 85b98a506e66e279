//! The guard in front of a real hyper server, over pipes of different sizes, and its deadlines.

use std::time::Duration;

use ::http::header::{CONTENT_LENGTH, LINK};
use ::http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::super::verdicts::HeadFacts;
use super::super::{Guard, Verdicts};
use crate::edge::limits::EdgeLimits;
use crate::edge::visitors::http::violation::Violation;

/// Return the visitor's end of a connection that hyper serves through a guard, over a pipe of
/// `pipe` bytes.
///
/// The service reports what it received: the status of the violation, or 200 with method, target,
/// and the body with its trailers. It accepts every upgrade to `echo` and then sends back what it
/// reads.
fn serve(pipe: usize) -> DuplexStream {
    let (visitor, edge) = duplex(pipe);
    let (guard, verdicts) = Guard::new(edge, &EdgeLimits::default());
    let service = service_fn(move |request| answer(request, verdicts.clone()));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(guard), service);
    // It ends with the visitor's end of the pipe, at the latest with the test's runtime.
    tokio::spawn(connection.with_upgrades());
    visitor
}

async fn answer(
    mut request: Request<Incoming>,
    verdicts: Verdicts,
) -> hyper::Result<Response<Full<Bytes>>> {
    let facts = match verdicts.next() {
        Ok(facts) => facts,
        Err(violation) => {
            let mut response = Response::new(Full::from(violation.to_string()));
            *response.status_mut() = violation.status();
            return Ok(response);
        }
    };
    if facts.expects_upgrade && request.headers()["upgrade"] == "echo" {
        verdicts.upgraded(true);
        let upgrade = hyper::upgrade::on(&mut request);
        // It ends with the visitor's end of the pipe.
        tokio::spawn(async move {
            let io = TokioIo::new(upgrade.await.expect("an upgrade"));
            let (mut reader, mut writer) = tokio::io::split(io);
            tokio::io::copy(&mut reader, &mut writer)
                .await
                .expect("an echo");
            writer.shutdown().await.expect("an end");
        });
        let mut response = Response::new(Full::default());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        return Ok(response);
    }
    verdicts.upgraded(false);
    if request.uri().path() == "/hints" {
        let style = HeaderValue::from_static("</style.css>");
        verdicts.send_informational(
            StatusCode::EARLY_HINTS,
            &HeaderMap::from_iter([(LINK, style)]),
        );
        verdicts.send_informational(StatusCode::CONTINUE, &HeaderMap::new());
        tokio::task::yield_now().await;
        verdicts.send_informational(
            StatusCode::PROCESSING,
            &HeaderMap::from_iter([(CONTENT_LENGTH, 0.into())]),
        );
    }
    if request.uri().path() == "/early" {
        let mut response = Response::new(Full::from("no more"));
        *response.status_mut() = StatusCode::PAYLOAD_TOO_LARGE;
        return Ok(response);
    }
    let line = format!("{} {} ", request.method(), request.uri());
    let body = request.into_body().collect().await?;
    let trailer = body
        .trailers()
        .and_then(|trailers| trailers.get("x-sum"))
        .map(|sum| sum.as_bytes().to_vec());
    Ok(Response::new(Full::from(
        [
            line.as_bytes(),
            &body.to_bytes(),
            &trailer.unwrap_or_default(),
        ]
        .concat(),
    )))
}

/// Send all bytes, and read all responses; dates are left out.
async fn converse(visitor: DuplexStream, input: &[u8]) -> String {
    let (mut reader, mut writer) = tokio::io::split(visitor);
    let mut answers = Vec::new();
    let (_, read) = tokio::join!(writer.write_all(input), reader.read_to_end(&mut answers));
    read.expect("answers");
    let answers = String::from_utf8(answers).expect("text");
    answers
        .split_inclusive("\r\n")
        .filter(|line| !line.starts_with("date: "))
        .collect()
}

#[tokio::test]
async fn hyper_answers_keep_alive_and_pipelined_requests_in_order() {
    let input = concat!(
        "GET /1 HTTP/1.1\r\nhost: a\r\n\r\n",
        "POST /2 HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n",
        "3\r\nabc\r\n2;x\r\nde\r\n0\r\nx-sum: 7\r\n\r\n",
        "POST /3 HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nxyz",
        "GET /4 HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
    );
    for pipe in [8, 1 << 16] {
        let answers = converse(serve(pipe), input.as_bytes()).await;

        let expected = concat!(
            "HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\nGET /1 ",
            "HTTP/1.1 200 OK\r\ncontent-length: 14\r\n\r\nPOST /2 abcde7",
            "HTTP/1.1 200 OK\r\ncontent-length: 11\r\n\r\nPOST /3 xyz",
            "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 7\r\n\r\nGET /4 ",
        );
        assert_eq!(answers, expected, "{pipe}");
    }
}

#[tokio::test]
async fn a_violation_is_answered_and_ends_the_connection() {
    let input = concat!(
        "GET /1 HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET /2 HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
        "GET /3 HTTP/1.1\r\nhost: a\r\n\r\n",
    );
    for pipe in [8, 1 << 16] {
        let answers = converse(serve(pipe), input.as_bytes()).await;

        let sentence = Violation::RepeatedHost.to_string();
        let length = sentence.len();
        let expected = format!(
            "HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\nGET /1 \
             HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{sentence}",
        );
        assert_eq!(answers, expected, "{pipe}");
    }
}

#[tokio::test]
async fn a_response_reaches_a_visitor_that_is_still_sending() {
    let mut input = b"POST /early HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000\r\n\r\n".to_vec();
    input.resize(input.len() + 300_000, b'x');
    for pipe in [8, 1 << 16] {
        let (mut reader, mut writer) = tokio::io::split(serve(pipe));
        let mut answer = Vec::new();
        let (written, read) = tokio::join!(
            async {
                writer.write_all(&input).await?;
                writer.shutdown().await
            },
            reader.read_to_end(&mut answer),
        );

        assert!(written.is_ok(), "{pipe}: {written:?}");
        assert!(
            read.is_ok() && answer.ends_with(b"no more"),
            "{pipe}: {}",
            String::from_utf8_lossy(&answer)
        );
    }
}

#[tokio::test]
async fn informational_responses_come_before_the_final_one() {
    let input = concat!(
        "GET /1 HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET /hints HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET /hints HTTP/1.0\r\nhost: a\r\n\r\n",
    );
    for pipe in [8, 1 << 16] {
        let answers = converse(serve(pipe), input.as_bytes()).await;

        let expected = concat!(
            "HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\nGET /1 ",
            "HTTP/1.1 103 Early Hints\r\nlink: </style.css>\r\n\r\n",
            "HTTP/1.1 102 Processing\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 11\r\n\r\nGET /hints ",
            "HTTP/1.0 200 OK\r\ncontent-length: 11\r\n\r\nGET /hints ",
        );
        assert_eq!(answers, expected, "{pipe}");
    }
}

#[tokio::test]
async fn after_an_upgrade_bytes_pass_unchanged_and_each_side_ends_on_its_own() {
    let head = b"GET / HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: echo\r\n\r\n";
    for pipe in [8, 1 << 16] {
        let (mut reader, mut writer) = tokio::io::split(serve(pipe));
        let early = b"eager\0\n\xff".as_slice();
        let late = vec![b'\n'; 10_000];
        let mut answer = Vec::new();
        let (written, read) = tokio::join!(
            async {
                writer.write_all(&[head.as_slice(), early].concat()).await?;
                writer.write_all(&late).await?;
                writer.shutdown().await
            },
            reader.read_to_end(&mut answer),
        );

        written.and(read).expect("a conversation");
        assert!(answer.starts_with(b"HTTP/1.1 101 "), "{pipe}");
        assert!(answer.ends_with(&[early, &late].concat()), "{pipe}");
    }
}

#[tokio::test]
async fn after_a_refused_upgrade_the_next_request_is_read() {
    let input = concat!(
        "GET /1 HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n",
        "GET /2 HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
    );
    for pipe in [8, 1 << 16] {
        let answers = converse(serve(pipe), input.as_bytes()).await;

        assert_eq!(
            answers.matches("HTTP/1.1 200 OK").count(),
            2,
            "{pipe}: {answers}"
        );
        assert!(answers.ends_with("GET /2 "), "{pipe}: {answers}");
    }
}

#[tokio::test]
async fn a_visitor_that_leaves_while_an_upgrade_is_decided_is_noticed() {
    let (mut visitor, edge) = duplex(1 << 10);
    let (mut guard, verdicts) = Guard::new(edge, &EdgeLimits::default());
    let head = b"GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    visitor.write_all(head).await.expect("a head");
    let mut seen = vec![0; head.len()];
    guard.read_exact(&mut seen).await.expect("the head");
    assert_eq!(
        verdicts.next(),
        Ok(HeadFacts {
            expects_upgrade: true,
            takes_informational: true
        })
    );
    visitor.write_all(b"eager").await.expect("more");

    drop(visitor);

    assert_eq!(guard.read(&mut [0; 8]).await.expect("an end"), 0);
}

#[tokio::test]
async fn a_decision_for_another_request_does_not_count() {
    let (mut visitor, edge) = duplex(1 << 10);
    let (mut guard, verdicts) = Guard::new(edge, &EdgeLimits::default());
    let heads = concat!(
        "GET / HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
    );
    visitor
        .write_all(format!("{heads}raw\n").as_bytes())
        .await
        .expect("heads");
    let mut seen = vec![0; heads.len()];
    guard.read_exact(&mut seen).await.expect("the heads");

    assert_eq!(
        verdicts.next(),
        Ok(HeadFacts {
            expects_upgrade: false,
            takes_informational: true
        })
    );
    verdicts.upgraded(false);
    assert_eq!(
        verdicts.next(),
        Ok(HeadFacts {
            expects_upgrade: true,
            takes_informational: true
        })
    );
    verdicts.upgraded(true);
    verdicts.upgraded(false);

    let mut raw = [0; 4];
    guard.read_exact(&mut raw).await.expect("raw bytes");
    assert_eq!(&raw, b"raw\n");
}

#[tokio::test(start_paused = true)]
async fn an_incomplete_head_is_answered_at_the_deadline() {
    let mut visitor = serve(1 << 10);
    visitor
        .write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\nGET / HT")
        .await
        .expect("a request and a half");

    let mut answers = String::new();
    visitor.read_to_string(&mut answers).await.expect("answers");

    assert!(answers.starts_with("HTTP/1.1 200 OK"), "{answers}");
    assert!(
        answers.contains("HTTP/1.1 408 Request Timeout"),
        "{answers}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_silent_visitor_is_disconnected_without_a_response() {
    let mut visitor = serve(1 << 10);

    let mut answers = String::new();
    visitor.read_to_string(&mut answers).await.expect("an end");

    assert_eq!(answers, "");
}

#[tokio::test(start_paused = true)]
async fn a_request_in_progress_has_no_deadline() {
    let (mut visitor, edge) = duplex(1 << 10);
    let (mut guard, _verdicts) = Guard::new(edge, &EdgeLimits::default());
    visitor
        .write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\n\r\n")
        .await
        .expect("a head");
    let mut seen = [0; 64];
    let head = guard.read(&mut seen).await.expect("the head");
    assert!(head > 0);

    tokio::time::timeout(HEAD_TIMEOUT * 100, guard.read(&mut seen))
        .await
        .expect_err("nothing to read");
}

const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
