//! Cookies: those that one tunnel may not set for another, and the many that a browser may have.

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, Response};
use qtunnel::{Carrier, Event};

use crate::lab::{Lab, Server};

on_each_carrier!(a_cookie_for_the_edges_whole_domain_is_left_out_and_the_agent_says_so);
async fn a_cookie_for_the_edges_whole_domain_is_left_out_and_the_agent_says_so(carrier: Carrier) {
    let lab = Lab::public().await.over(carrier);
    let upstream = Server::http(|_request| async {
        let mut response = Response::new(Full::new(Bytes::new()));
        for cookie in [
            "own=1; Path=/",
            "named=1; Domain=blog.tunnel.test",
            "all=1; Domain=tunnel.test",
            "dot=1; domain=.Tunnel.Test; Secure",
            "last=1; Domain=blog.tunnel.test; Domain=tunnel.test.",
            "quoted=1; Domain=\"tunnel.test\"",
            "top=1; Domain=test",
            "elsewhere=1; Domain=example.com",
        ] {
            let headers = response.headers_mut();
            headers.append("set-cookie", cookie.parse().expect("a value"));
        }
        response
    })
    .await;
    let mut agent = lab.agent("blog", &upstream).await;

    let plain = lab.visitor("blog").get("/").await;
    let http2 = lab.http2("blog").await.get("/").await;

    for reply in [plain, http2] {
        let cookies: Vec<_> = reply.headers.get_all("set-cookie").iter().collect();
        let left = [
            "own=1; Path=/",
            "named=1; Domain=blog.tunnel.test",
            "elsewhere=1; Domain=example.com",
        ];
        assert_eq!(cookies, left);
    }
    let told = |event: &Event| match event {
        Event::CookiesLeftOut { host, count } => Some((host.clone(), *count)),
        _ => None,
    };
    assert_eq!(agent.event(told).await, ("blog.tunnel.test".to_owned(), 5));
    let lines = agent.count(|event| told(event).is_some());
    assert_eq!(lines, 1, "one line for both answers");
}

on_each_carrier!(the_same_cookies_get_the_same_verdict_over_http1_and_http2);
/// Over HTTP/2 each is a field of its own, as browsers send them.
async fn the_same_cookies_get_the_same_verdict_over_http1_and_http2(carrier: Carrier) {
    let lab = Lab::public().await.over(carrier);
    let upstream = Server::http(|request: Request<hyper::body::Incoming>| async move {
        let cookies = request.headers().get_all("cookie").iter();
        let seen: Vec<_> = cookies.map(|cookie| cookie.as_bytes().to_vec()).collect();
        assert!(seen.len() <= 1, "{} fields", seen.len());
        Response::new(Full::new(Bytes::from(seen.concat())))
    })
    .await;
    let _agent = lab.agent("blog", &upstream).await;
    let (plain, http2) = (lab.visitor("blog"), lab.http2("blog").await);
    let authority = http2
        .uri("/")
        .authority()
        .expect("an authority")
        .to_string();
    let head = format!("GET / HTTP/1.1\r\nhost: {authority}\r\ncookie: \r\n\r\n").len();
    for count in [1, 110, 300, 1_000] {
        for (room, status) in [(4 << 10, 200), (16 << 10, 200), ((16 << 10) + 1, 431)] {
            let Some(cookies) = cookies(count, room - head) else {
                continue;
            };
            let joined = cookies.join("; ");

            let request =
                format!("GET / HTTP/1.1\r\nhost: {authority}\r\ncookie: {joined}\r\n\r\n");
            assert_eq!(request.len(), room);
            let mut wire = plain.wire().await;
            wire.send(request).await;
            let one = wire.head().await;
            let split = cookies
                .iter()
                .fold(Request::get(http2.uri("/")), |request, cookie| {
                    request.header("cookie", cookie)
                });
            let many = http2.send(split).await;

            let expected = format!("HTTP/1.1 {status} ");
            assert!(one.starts_with(&expected), "{count} in {room}: {one}");
            assert_eq!(many.status, status, "{count} in {room}");
            if status == 200 {
                assert!(many.text() == joined, "{count} in {room}: {}", many.text());
            }
        }
    }
}

/// Make so many cookies that they have this length when they are joined.
fn cookies(count: usize, length: usize) -> Option<Vec<String>> {
    let mut cookies: Vec<_> = (0..count - 1).map(|at| format!("c{at}={at}")).collect();
    let others: usize = cookies.iter().map(|cookie| cookie.len() + "; ".len()).sum();
    let left = length.checked_sub(others + "last=".len())?;
    cookies.push(format!("last={}", "y".repeat(left)));
    Some(cookies)
}
