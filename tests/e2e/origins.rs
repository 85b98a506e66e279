//! With a `Host` that is not the visitor's, what must agree with it does, in both directions.

use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use qtunnel::{AgentConfig, Carrier, Service, Upstream, UpstreamBody};
use tokio::join;

use crate::lab::head::field;
use crate::lab::{Lab, Server, Wires};

on_each_carrier!(a_request_names_the_origin_that_the_upstream_knows);
async fn a_request_names_the_origin_that_the_upstream_knows(carrier: Carrier) {
    for choice in ["rewrite", "app.local:3000", "preserve"] {
        let lab = Lab::start().await.over(carrier);
        let (upstream, mut wires) = Server::by_hand().await;
        let _agent = lab.agent_with("blog", &upstream, host(choice)).await;
        let public = format!("http://blog.localhost:{}", lab.http.port());
        let own = match choice {
            "rewrite" => format!("http://{}", upstream.addr),
            "preserve" => public.clone(),
            value => format!("http://{value}"),
        };
        for (name, suffix) in [
            ("origin", ""),
            ("referer", "/page?q"),
            ("destination", "/new"),
        ] {
            let line = format!("{name}: {public}{suffix}\r\n");

            let (seen, _) = carry(&lab, &mut wires, &line, EMPTY).await;

            let expected = format!("{own}{suffix}");
            assert_eq!(field(&seen, name), Some(&*expected), "{choice}");
            let authority = own.strip_prefix("http://");
            assert_eq!(field(&seen, "host"), authority, "{choice}");
            let told = match name {
                // Some compare it with that, and others with the host.
                "origin" => authority,
                _ => public.strip_prefix("http://"),
            };
            assert_eq!(field(&seen, "x-forwarded-host"), told, "{choice}");
        }
    }
}

on_each_carrier!(an_answer_names_the_origin_that_the_visitor_knows);
async fn an_answer_names_the_origin_that_the_visitor_knows(carrier: Carrier) {
    let lab = Lab::start().await.over(carrier);
    let (upstream, mut wires) = Server::by_hand().await;
    let _agent = lab.agent_with("blog", &upstream, host("rewrite")).await;
    let (public, own) = (
        format!("http://blog.localhost:{}", lab.http.port()),
        format!("http://{}", upstream.addr),
    );
    for (name, before, after) in [
        ("location", "", "/dir/"),
        ("content-location", "", "/item"),
        ("refresh", "0; url=", "/next"),
        ("link", "<", "/style.css>; rel=preload"),
        ("access-control-allow-origin", "", ""),
    ] {
        let answer = format!(
            "HTTP/1.1 201 Created\r\n{name}: {before}{own}{after}\r\ncontent-length: 0\r\n\
             set-cookie: a=1; Domain=127.0.0.1; Path=/\r\n\r\n"
        );

        let (_, answer) = carry(&lab, &mut wires, "", &answer).await;

        let expected = format!("{before}{public}{after}");
        assert_eq!(field(&answer, name), Some(&*expected));
        let cookie = "a=1; Domain=blog.localhost; Path=/";
        assert_eq!(field(&answer, "set-cookie"), Some(cookie));
    }
}

on_each_carrier!(other_origins_stay_as_they_are);
async fn other_origins_stay_as_they_are(carrier: Carrier) {
    let lab = Lab::start().await.over(carrier);
    let (upstream, mut wires) = Server::by_hand().await;
    let _agent = lab.agent_with("blog", &upstream, host("rewrite")).await;
    let port = lab.http.port();
    for (name, value) in [
        ("origin", "null".to_owned()),
        ("origin", "https://evil.example".to_owned()),
        ("origin", format!("https://blog.localhost:{port}")),
        ("origin", format!("http://other.localhost:{port}")),
        ("origin", "http://blog.localhost".to_owned()),
        (
            "referer",
            format!("http://blog.localhost:{port}@evil.example/"),
        ),
    ] {
        let line = format!("{name}: {value}\r\n");

        let (seen, _) = carry(&lab, &mut wires, &line, EMPTY).await;

        assert_eq!(field(&seen, name), Some(&*value));
    }
    let own = upstream.addr.port();
    for value in [
        "/relative".to_owned(),
        format!("http://localhost:{own}/"),
        format!("https://127.0.0.1:{own}/"),
        format!("http://127.0.0.1:{own}0/"),
        "http://127.0.0.1/".to_owned(),
        "https://evil.example/".to_owned(),
    ] {
        let answer =
            format!("HTTP/1.1 302 Found\r\nlocation: {value}\r\ncontent-length: 0\r\n\r\n");

        let (_, answer) = carry(&lab, &mut wires, "", &answer).await;

        assert_eq!(field(&answer, "location"), Some(&*value));
    }
}

on_each_carrier!(a_visitor_over_tls_gets_the_origin_through_which_it_came);
async fn a_visitor_over_tls_gets_the_origin_through_which_it_came(carrier: Carrier) {
    let lab = Lab::public().await.over(carrier);
    let (upstream, mut wires) = Server::by_hand().await;
    let _agent = lab.agent_with("blog", &upstream, host("rewrite")).await;
    let visitor = lab.http2("blog").await;
    let public = format!("https://blog.tunnel.test:{}", lab.https.port());
    let request = Request::post(visitor.uri("/form")).header("origin", &public);
    let location = format!("http://{}/done", upstream.addr);
    let answer =
        format!("HTTP/1.1 303 See Other\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n");
    let upstream_side = async {
        let mut wire = wires.next().await;
        let head = wire.head().await;
        wire.send(answer).await;
        head
    };

    let (response, seen) = join!(
        visitor.begin(request, Full::<Bytes>::default()),
        upstream_side
    );

    let own = format!("http://{}", upstream.addr);
    assert_eq!(field(&seen, "origin"), Some(&*own));
    let response = response.expect("an answer");
    assert_eq!(response.headers()["location"], format!("{public}/done"));
}

on_each_carrier!(a_websocket_comes_from_the_origin_that_the_upstream_knows);
async fn a_websocket_comes_from_the_origin_that_the_upstream_knows(carrier: Carrier) {
    let lab = Lab::start().await.over(carrier);
    let (upstream, mut wires) = Server::by_hand().await;
    let _agent = lab.agent_with("blog", &upstream, host("rewrite")).await;
    let port = lab.http.port();
    let fields = format!(
        "origin: http://blog.localhost:{port}\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n"
    );
    let switched = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         set-cookie: a=1; domain=127.0.0.1\r\nset-cookie: b=1; domain=localhost\r\n\r\n";

    let (seen, answer) = carry(&lab, &mut wires, &fields, switched).await;

    let own = format!("http://{}", upstream.addr);
    assert_eq!(field(&seen, "origin"), Some(&*own));
    assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
    let cookie = "a=1; domain=blog.localhost";
    assert_eq!(field(&answer, "set-cookie"), Some(cookie));
    assert!(!answer.contains("b=1"), "{answer}");
}

on_each_carrier!(a_service_in_the_agents_process_knows_one_origin_too);
async fn a_service_in_the_agents_process_knows_one_origin_too(carrier: Carrier) {
    let lab = Lab::start().await.over(carrier);
    let service = Service::new(|request: Request<UpstreamBody>| async move {
        let origin = request.headers()["origin"].clone();
        let mut response = hyper::Response::new(UpstreamBody::full(origin.as_bytes().to_vec()));
        let headers = response.headers_mut();
        headers.insert("location", "http://localhost/x".parse()?);
        headers.insert("set-cookie", "a=1; Domain=localhost".parse()?);
        Ok(response)
    });
    let upstream = Upstream::Service(service);
    let _agent = lab.agent_with("blog", upstream, host("rewrite")).await;
    let request = Request::get("/").header("origin", "http://blog.localhost");

    let reply = lab.visitor("blog").send(request).await;

    assert_eq!(reply.text(), "http://localhost");
    assert_eq!(reply.header("location"), "http://blog.localhost/x");
    assert_eq!(reply.header("set-cookie"), "a=1; Domain=blog.localhost");
}

/// Send fields and an answer through the tunnel, and return what arrived of each at the other end.
async fn carry(lab: &Lab, wires: &mut Wires, fields: &str, response: &str) -> (String, String) {
    let mut visitor = lab.visitor("blog").wire().await;
    let port = lab.http.port();
    visitor
        .send(format!(
            "GET / HTTP/1.1\r\nhost: blog.localhost:{port}\r\n{fields}\r\n"
        ))
        .await;
    let answer = async {
        let mut wire = wires.next().await;
        let head = wire.head().await;
        wire.send(response).await;
        wire.finish().await;
        head
    };
    join!(answer, visitor.head())
}

fn host(choice: &'static str) -> impl FnOnce(&mut AgentConfig) {
    move |config| config.tunnels[0].host_header = choice.parse().expect("a choice")
}

const EMPTY: &str = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
