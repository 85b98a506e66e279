//! The corners of HTTP that proxies lose: each message arrives as it was meant.

use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use qtunnel::Carrier;
use tokio::join;

use crate::lab::head::{field, text, values};
use crate::lab::{Lab, Server, Wire, Wires};

on_each_carrier!(targets_arrive_untouched);
async fn targets_arrive_untouched(carrier: Carrier) {
    let lab = Lab::start().await.over(carrier);
    let (upstream, mut wires) = Server::by_hand().await;
    let _agent = lab.agent("blog", &upstream).await;
    for target in [
        "/a//b/%2F..;x=1?q=%zz|{}",
        "//double//",
        "/../../etc/./passwd",
        "/%00%7e%7E+%20",
        "/?",
        "/??a=b&&c",
        "/a:b@c,d;e=f'g(h)*!$&[]^\\",
        "/\"quoted\"",
        "/ü/日本?q=ü",
    ] {
        let (request, _) = carry(
            &lab,
            &mut wires,
            &format!("GET {target} HTTP/1.1\r\nHost: blog.localhost\r\n"),
            OK,
        )
        .await;

        assert!(
            request.starts_with(&format!("GET {target} HTTP/1.1\r\n")),
            "{target}: {request}"
        );
    }
}

on_each_carrier!(what_a_target_may_not_contain_is_refused_and_not_repaired);
async fn what_a_target_may_not_contain_is_refused_and_not_repaired(carrier: Carrier) {
    let lab = Lab::start().await.over(carrier);
    let upstream = Server::text("reached").await;
    let _agent = lab.agent("blog", &upstream).await;
    for target in ["/a#b", "/<a>", "/a`b", "/a\u{7f}", "/?\"", "relative"] {
        let request = format!("GET {target} HTTP/1.1\r\nhost: blog.localhost\r\n\r\n");

        let answer = text(&lab.visitor("blog").raw(request).await);

        assert!(answer.starts_with("HTTP/1.1 400 "), "{target}: {answer}");
    }
}

on_each_carrier!(absolute_form_and_the_asterisk_reach_the_upstream_in_their_own_forms);
async fn absolute_form_and_the_asterisk_reach_the_upstream_in_their_own_forms(carrier: Carrier) {
    let lab = Lab::start().await.over(carrier);
    let (upstream, mut wires) = Server::by_hand().await;
    let _agent = lab.agent("blog", &upstream).await;
    for (sent, arrives) in [
        (
            "GET http://blog.localhost/x?y HTTP/1.1\r\nhost: blog.localhost\r\n",
            "GET /x?y HTTP/1.1\r\n",
        ),
        (
            "GET http://blog.localhost HTTP/1.1\r\nhost: blog.localhost\r\n",
            "GET / HTTP/1.1\r\n",
        ),
        (
            "GET http://blog.localhost?y HTTP/1.1\r\nhost: blog.localhost\r\n",
            "GET /?y HTTP/1.1\r\n",
        ),
        (
            "OPTIONS * HTTP/1.1\r\nhost: blog.localhost\r\n",
            "OPTIONS * HTTP/1.1\r\n",
        ),
        (
            "PROPFIND /dav HTTP/1.1\r\nhost: blog.localhost\r\n",
            "PROPFIND /dav HTTP/1.1\r\n",
        ),
        (
            "oDD /case HTTP/1.1\r\nhost: blog.localhost\r\n",
            "oDD /case HTTP/1.1\r\n",
        ),
    ] {
        let (request, answer) = carry(&lab, &mut wires, sent, OK).await;

        assert!(request.starts_with(arrives), "{sent}: {request}");
        assert!(
            request.contains("\r\nhost: blog.localhost\r\n"),
            "{sent}: {request}"
        );
        assert!(
            answer.starts_with("HTTP/1.1 200 OK\r\n"),
            "{sent}: {answer}"
        );
    }
}

on_each_carrier!(answers_without_a_body_keep_their_length_and_nothing_else_is_invented);
async fn answers_without_a_body_keep_their_length_and_nothing_else_is_invented(carrier: Carrier) {
    let lab = Lab::start().await.over(carrier);
    let (upstream, mut wires) = Server::by_hand().await;
    let _agent = lab.agent("blog", &upstream).await;
    let get = "GET / HTTP/1.1\r\nhost: blog.localhost\r\n";
    let head = "HEAD / HTTP/1.1\r\nhost: blog.localhost\r\n";
    for (request, response, length) in [
        (
            head,
            "HTTP/1.1 200 OK\r\ncontent-length: 1234\r\n\r\n",
            Some("1234"),
        ),
        (
            head,
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
            None,
        ),
        (
            head,
            "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n",
            Some("0"),
        ),
        // Optional there (RFC 9110 §8.6), and hyper leaves it out.
        (
            get,
            "HTTP/1.1 304 Not Modified\r\netag: \"x\"\r\ncontent-length: 1234\r\n\r\n",
            None,
        ),
        (
            get,
            "HTTP/1.1 304 Not Modified\r\netag: \"x\"\r\n\r\n",
            None,
        ),
        (get, "HTTP/1.1 204 No Content\r\n\r\n", None),
        (
            get,
            "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
            Some("0"),
        ),
    ] {
        let (_, answer) = carry(&lab, &mut wires, request, response).await;

        let (answered, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = response.split("\r\n").next().unwrap();
        assert!(answered.starts_with(status), "{request}{response}{answer}");
        assert_eq!(body, "", "{request}{response}{answer}");
        assert_eq!(
            field(answered, "content-length"),
            length,
            "{request}{response}{answer}"
        );
        assert_eq!(
            field(answered, "transfer-encoding"),
            None,
            "{request}{response}{answer}"
        );
    }
}

on_each_carrier!(http2_visitors_see_bodiless_answers_too);
async fn http2_visitors_see_bodiless_answers_too(carrier: Carrier) {
    let lab = Lab::public().await.over(carrier);
    let upstream = Server::raw(|stream| async move {
        let mut wire = Wire::new(stream);
        let answer = match wire.head().await.split(' ').next().unwrap() {
            "HEAD" => "HTTP/1.1 200 OK\r\ncontent-length: 1234\r\n\r\n",
            "OPTIONS" => "HTTP/1.1 204 No Content\r\nallow: GET\r\n\r\n",
            _ => "HTTP/1.1 304 Not Modified\r\netag: \"x\"\r\n\r\n",
        };
        wire.send(answer).await;
    })
    .await;
    let _agent = lab.agent("blog", &upstream).await;
    let visitor = lab.http2("blog").await;

    let head = visitor.send(Request::head(visitor.uri("/"))).await;
    let options = visitor.send(Request::options(visitor.uri("/"))).await;
    let get = visitor.get("/").await;

    assert_eq!(
        (head.status, head.header("content-length"), head.text()),
        (200, "1234", "")
    );
    assert_eq!(
        (options.status, options.header("allow"), options.text()),
        (204, "GET", "")
    );
    assert_eq!(
        (get.status, get.header("etag"), get.text()),
        (304, "\"x\"", "")
    );
}

on_each_carrier!(http_1_0_visitors_get_answers_that_they_understand);
async fn http_1_0_visitors_get_answers_that_they_understand(carrier: Carrier) {
    let lab = Lab::start().await.over(carrier);
    let (upstream, mut wires) = Server::by_hand().await;
    let _agent = lab.agent("blog", &upstream).await;
    let mut visitor = lab.visitor("blog").wire().await;

    // Kept alive, as long as the length is known.
    visitor
        .send("GET /1 HTTP/1.0\r\nhost: blog.localhost\r\nconnection: keep-alive\r\n\r\n")
        .await;
    let mut wire = wires.next().await;
    assert!(wire.head().await.starts_with("GET /1 HTTP/1.1\r\n"));
    wire.send("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 3\r\n\r\none")
        .await;
    let head = visitor.head().await;
    assert!(head.starts_with("HTTP/1.0 200 OK\r\n"), "{head}");
    assert_eq!(field(&head, "connection"), Some("keep-alive"));
    assert_eq!(visitor.bytes(3).await, b"one");

    // Closed where it is not: HTTP/1.0 knows no chunks.
    visitor
        .send("GET /2 HTTP/1.0\r\nhost: blog.localhost\r\n\r\n")
        .await;
    let mut wire = wires.next().await;
    wire.head().await;
    wire.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\ntwo\r\n0\r\n\r\n")
        .await;
    let head = visitor.head().await;
    assert!(head.starts_with("HTTP/1.0 200 OK\r\n"), "{head}");
    assert_eq!(field(&head, "transfer-encoding"), None);
    assert_eq!(visitor.rest().await, b"two");
}

on_each_carrier!(repeated_fields_stay_apart_and_in_order_and_values_are_bytes);
async fn repeated_fields_stay_apart_and_in_order_and_values_are_bytes(carrier: Carrier) {
    let lab = Lab::start().await.over(carrier);
    let (upstream, mut wires) = Server::by_hand().await;
    let _agent = lab.agent("blog", &upstream).await;
    let mut visitor = lab.visitor("blog").wire().await;

    visitor.send(b"GET / HTTP/1.1\r\nhost: blog.localhost\r\nx-list: b\r\nx-other: 1\r\nx-list: a\r\nx-latin: caf\xe9\r\nx-list: c\r\n\r\n").await;
    let mut wire = wires.next().await;
    let request = wire.until("\r\n\r\n").await;
    wire.send(b"HTTP/1.1 200 OK\r\nset-cookie: b=1\r\nset-cookie: a=2\r\nx-latin: \xe9\xff\r\nset-cookie: b=3\r\ncontent-length: 0\r\n\r\n").await;
    let response = visitor.until("\r\n\r\n").await;

    assert_eq!(values(&request, "x-list"), ["b", "a", "c"].map(Vec::from));
    assert_eq!(values(&request, "x-latin"), [b"caf\xe9"]);
    assert_eq!(
        values(&response, "set-cookie"),
        ["b=1", "a=2", "b=3"].map(Vec::from)
    );
    assert_eq!(values(&response, "x-latin"), [b"\xe9\xff"]);
}

on_each_carrier!(reason_phrases_survive);
async fn reason_phrases_survive(carrier: Carrier) {
    let lab = Lab::start().await.over(carrier);
    let (upstream, mut wires) = Server::by_hand().await;
    let _agent = lab.agent("blog", &upstream).await;
    for status in [
        "200 Fine By Me",
        "299 Unheard Of",
        "418 I'm a teapot",
        "599 Odd",
    ] {
        let response = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");

        let (_, answer) = carry(&lab, &mut wires, GET, &response).await;

        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}\r\n")),
            "{answer}"
        );
    }
}

on_each_carrier!(a_request_body_arrives_whatever_its_method_and_framing);
async fn a_request_body_arrives_whatever_its_method_and_framing(carrier: Carrier) {
    let lab = Lab::start().await.over(carrier);
    let upstream = Server::echo().await;
    let _agent = lab.agent("blog", &upstream).await;
    for method in ["GET", "POST", "DELETE", "REPORT"] {
        for framing in [
            "content-length: 5\r\n\r\nhello",
            "transfer-encoding: chunked\r\n\r\n2\r\nhe\r\n3;ext=1\r\nllo\r\n0\r\n\r\n",
        ] {
            let request = format!(
                "{method} / HTTP/1.1\r\nhost: blog.localhost\r\nconnection: close\r\n{framing}"
            );

            let answer = text(&lab.visitor("blog").raw(&request).await);

            assert!(
                answer.starts_with("HTTP/1.1 200 OK\r\n")
                    && answer.replace("\r\n3\r\n", "").contains("hello"),
                "{request}\n{answer}"
            );
        }
    }
}

on_each_carrier!(cookie_crumbs_of_http2_arrive_as_one_field);
async fn cookie_crumbs_of_http2_arrive_as_one_field(carrier: Carrier) {
    let lab = Lab::public().await.over(carrier);
    let (upstream, mut wires) = Server::by_hand().await;
    let _agent = lab.agent("blog", &upstream).await;
    let visitor = lab.http2("blog").await;

    let request = Request::get(visitor.uri("/"))
        .header("cookie", "a=1")
        .header("cookie", "b=2");
    let upstream = async {
        let mut wire = wires.next().await;
        let head = wire.head().await;
        wire.send(OK).await;
        head
    };
    let (response, head) = join!(visitor.begin(request, Full::<Bytes>::default()), upstream);

    assert_eq!(response.unwrap().status(), 200);
    assert_eq!(values(head.as_bytes(), "cookie"), [b"a=1; b=2"]);
    assert!(head.contains("\r\nhost: blog.tunnel.test"), "{head}");
}

/// Send a head (without its empty line) and a response through the tunnel, and return what arrived of
/// each at the other end.
async fn carry(lab: &Lab, wires: &mut Wires, request: &str, response: &str) -> (String, String) {
    let upstream = async {
        let mut wire = wires.next().await;
        let head = wire.head().await;
        wire.send(response).await;
        wire.finish().await;
        head
    };
    let visitor = lab.visitor("blog");
    let (head, answer) = join!(
        upstream,
        visitor.raw(format!("{request}connection: close\r\n\r\n"))
    );
    (head, text(&answer))
}

const GET: &str = "GET / HTTP/1.1\r\nhost: blog.localhost\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
