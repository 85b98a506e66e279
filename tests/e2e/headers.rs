//! What is added to a message, what is taken out, and when an upstream's connection is used again.

use qtunnel::{AgentConfig, Carrier, Event, HostHeader};
use tokio::join;

use crate::lab::{Lab, Running, Server, Wires};

on_each_carrier!(fields_of_one_hop_end_there_in_both_directions);
async fn fields_of_one_hop_end_there_in_both_directions(carrier: Carrier) {
    let lab = Lab::start().await.over(carrier);
    let (upstream, mut wires) = Server::by_hand().await;
    let _agent = lab.agent("blog", &upstream).await;

    let request = "GET / HTTP/1.1\r\nhost: blog.localhost\r\nconnection: x-hop, keep-alive\r\nx-hop: 1\r\n\
         keep-alive: timeout=5\r\nproxy-connection: keep-alive\r\nproxy-authorization: Basic eA==\r\n\
         te: gzip\r\nupgrade: h2c\r\nhttp2-settings: AA\r\nx-end: 1\r\n";
    let response = "HTTP/1.1 200 OK\r\nconnection: x-hop\r\nx-hop: 1\r\nkeep-alive: timeout=5\r\n\
         proxy-authenticate: Basic\r\nupgrade: h2c\r\ncontent-length: 0\r\nx-end: 1\r\n\r\n";
    let (seen, answer) = carry(&lab, &mut wires, request, response).await;

    for (message, gone) in [
        (
            &seen,
            [
                "connection",
                "x-hop",
                "keep-alive",
                "proxy-connection",
                "proxy-authorization",
                "te",
                "upgrade",
            ],
        ),
        (
            &answer,
            [
                "x-hop",
                "keep-alive",
                "proxy-authenticate",
                "upgrade",
                "te",
                "proxy-connection",
                "trailer",
            ],
        ),
    ] {
        assert_eq!(values(message, "x-end"), ["1"], "{message}");
        for name in gone {
            assert!(values(message, name).is_empty(), "{name} in {message}");
        }
    }
}

on_each_carrier!(connection_has_no_power_over_fields_meant_for_everybody);
async fn connection_has_no_power_over_fields_meant_for_everybody(carrier: Carrier) {
    let lab = Lab::start().await.over(carrier);
    let (upstream, mut wires) = Server::by_hand().await;
    let _agent = lab.agent("blog", &upstream).await;

    let request = "POST / HTTP/1.1\r\nhost: blog.localhost\r\nconnection: host, content-length, x-forwarded-for, cookie\r\n\
         cookie: a=1\r\ncontent-length: 0\r\n";
    let (seen, _) = carry(&lab, &mut wires, request, EMPTY).await;

    for (name, value) in [
        ("host", "blog.localhost"),
        ("cookie", "a=1"),
        ("content-length", "0"),
        ("x-forwarded-for", "127.0.0.1"),
    ] {
        assert_eq!(values(&seen, name), [value], "{seen}");
    }
}

on_each_carrier!(forged_words_about_the_visitor_are_replaced);
async fn forged_words_about_the_visitor_are_replaced(carrier: Carrier) {
    let lab = Lab::start().await.over(carrier);
    let (upstream, mut wires) = Server::by_hand().await;
    let _agent = lab.agent("blog", &upstream).await;

    let (seen, _) = carry(&lab, &mut wires, FORGED, EMPTY).await;

    for (name, value) in [
        ("x-forwarded-for", "127.0.0.1"),
        ("x-forwarded-proto", "http"),
        ("x-forwarded-host", "blog.localhost"),
        ("forwarded", "for=127.0.0.1;proto=http;host=blog.localhost"),
    ] {
        assert_eq!(values(&seen, name), [value], "{seen}");
    }
    assert!(!seen.contains("6.6.6.6"), "{seen}");
}

on_each_carrier!(a_trusted_proxy_is_believed_and_added);
async fn a_trusted_proxy_is_believed_and_added(carrier: Carrier) {
    let lab = Lab::with(|config| config.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()])
        .await
        .over(carrier);
    let (upstream, mut wires) = Server::by_hand().await;
    let _agent = lab.agent("blog", &upstream).await;

    let (seen, _) = carry(&lab, &mut wires, FORGED, EMPTY).await;

    for (name, value) in [
        ("x-forwarded-for", "6.6.6.6, 127.0.0.1"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "evil"),
        (
            "forwarded",
            "for=6.6.6.6;proto=https;host=evil, for=127.0.0.1",
        ),
        ("x-real-ip", "6.6.6.6"),
    ] {
        assert_eq!(values(&seen, name), [value], "{seen}");
    }
    assert!(values(&seen, "x_forwarded_for").is_empty(), "{seen}");
}

on_each_carrier!(the_scheme_of_a_visitor_over_tls_is_https);
async fn the_scheme_of_a_visitor_over_tls_is_https(carrier: Carrier) {
    let lab = Lab::public().await.over(carrier);
    let (upstream, mut wires) = Server::by_hand().await;
    let _agent = lab.agent("blog", &upstream).await;
    let visitor = lab.http2("blog").await;

    let (reply, seen) = join!(visitor.get("/"), answer(&mut wires, EMPTY));

    assert_eq!(reply.status, 200);
    assert_eq!(values(&seen, "x-forwarded-proto"), ["https"]);
    let host = format!("blog.tunnel.test:{}", lab.https.port());
    assert_eq!(values(&seen, "host"), [host.as_str()]);
    assert_eq!(
        values(&seen, "forwarded"),
        [format!("for=127.0.0.1;proto=https;host=\"{host}\"")]
    );
}

on_each_carrier!(the_host_is_preserved_rewritten_or_replaced_and_the_original_is_told);
async fn the_host_is_preserved_rewritten_or_replaced_and_the_original_is_told(carrier: Carrier) {
    for choice in ["preserve", "rewrite", "app.local:3000"] {
        let lab = Lab::start().await.over(carrier);
        let (upstream, mut wires) = Server::by_hand().await;
        let host_header: HostHeader = choice.parse().unwrap();
        let set = |config: &mut AgentConfig| config.tunnels[0].host_header = host_header;
        let _agent = lab.agent_with("blog", &upstream, set).await;

        let (seen, _) = carry(
            &lab,
            &mut wires,
            "GET / HTTP/1.1\r\nhost: Blog.Localhost:80\r\n",
            EMPTY,
        )
        .await;

        let own = upstream.addr.to_string();
        let expected = match choice {
            "preserve" => "Blog.Localhost:80",
            "rewrite" => &own,
            value => value,
        };
        assert_eq!(values(&seen, "host"), [expected], "{seen}");
        assert_eq!(
            values(&seen, "x-forwarded-host"),
            ["Blog.Localhost:80"],
            "{seen}"
        );
    }
}

on_each_carrier!(exactly_one_field_frames_a_body_towards_the_upstream);
async fn exactly_one_field_frames_a_body_towards_the_upstream(carrier: Carrier) {
    let lab = Lab::start().await.over(carrier);
    let (upstream, mut wires) = Server::by_hand().await;
    let _agent = lab.agent("blog", &upstream).await;
    for (sent, leaves) in [
        (
            "POST / HTTP/1.1\r\nhost: blog.localhost\r\ncontent-length: 2\r\n\r\nhi",
            Some("content-length: 2"),
        ),
        (
            "POST / HTTP/1.1\r\nhost: blog.localhost\r\ncontent-length: 0\r\n\r\n",
            Some("content-length: 0"),
        ),
        (
            "POST / HTTP/1.1\r\nhost: blog.localhost\r\nTransfer-Encoding: CHUNKED\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
            Some("transfer-encoding: chunked"),
        ),
        (
            "GET / HTTP/1.1\r\nhost: blog.localhost\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
            Some("transfer-encoding: chunked"),
        ),
        ("GET / HTTP/1.1\r\nhost: blog.localhost\r\n\r\n", None),
    ] {
        let mut visitor = lab.visitor("blog").wire().await;
        visitor.send(sent).await;
        let seen = answer(&mut wires, EMPTY).await;
        assert!(visitor.head().await.starts_with("HTTP/1.1 200 "));

        let framing: Vec<&str> = seen
            .split("\r\n")
            .filter(|line| {
                line.starts_with("content-length") || line.starts_with("transfer-encoding")
            })
            .collect();
        assert_eq!(framing, Vec::from_iter(leaves), "{sent}{seen}");
    }
}

on_each_carrier!(a_sound_upstream_connection_is_used_again);
async fn a_sound_upstream_connection_is_used_again(carrier: Carrier) {
    let lab = Lab::start().await.over(carrier);
    let (upstream, mut wires) = Server::by_hand().await;
    let mut agent = lab.agent("blog", &upstream).await;
    let visitor = lab.visitor("blog");
    let serve = async {
        let mut wire = wires.next().await;
        for body in [
            "content-length: 2\r\n\r\nok",
            "content-length: 0\r\n\r\n",
            "transfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        ]
        .repeat(20)
        {
            wire.head().await;
            wire.send(format!("HTTP/1.1 200 OK\r\n{body}")).await;
        }
    };
    let visit = async {
        for at in 0..60 {
            let path = format!("/{at}");
            assert_eq!(visitor.get(&path).await.status, 200);
            assert_eq!(ended(&mut agent, &path).await, None);
        }
    };
    join!(serve, visit);

    assert!(wires.is_empty(), "a second connection");
}

on_each_carrier!(an_upstream_connection_is_not_used_again_after_anything_odd);
async fn an_upstream_connection_is_not_used_again_after_anything_odd(carrier: Carrier) {
    for odd in [
        // More than was announced: the rest could be taken for the next answer.
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil",
        "HTTP/1.1 204 No Content\r\n\r\nevil",
        "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok",
        "HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok",
    ] {
        let lab = Lab::start().await.over(carrier);
        let (upstream, mut wires) = Server::by_hand().await;
        let mut agent = lab.agent("blog", &upstream).await;
        let visitor = lab.visitor("blog");
        let first = async {
            let mut wire = wires.next().await;
            wire.head().await;
            wire.send(odd).await;
            wire
        };
        let (reply, mut wire) = join!(visitor.get("/1"), first);
        assert!(matches!(reply.status, 200 | 204), "{odd}");
        ended(&mut agent, "/1").await;

        let (reply, _) = join!(
            visitor.get("/2"),
            answer(
                &mut wires,
                "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ngood"
            )
        );

        assert_eq!(reply.text(), "good", "{odd}");
        assert_eq!(wire.rest().await, b"", "{odd}");
    }
}

on_each_carrier!(a_get_survives_a_connection_that_was_just_closed_and_a_post_is_never_sent_twice);
async fn a_get_survives_a_connection_that_was_just_closed_and_a_post_is_never_sent_twice(
    carrier: Carrier,
) {
    for (method, survives) in [("GET", true), ("DELETE", true), ("POST", false)] {
        let lab = Lab::start().await.over(carrier);
        let (upstream, mut wires) = Server::by_hand().await;
        let mut agent = lab.agent("blog", &upstream).await;
        let visitor = lab.visitor("blog");
        let first = async {
            let mut wire = wires.next().await;
            wire.head().await;
            wire.send(EMPTY).await;
            wire
        };
        let (_, mut wire) = join!(visitor.get("/1"), first);
        ended(&mut agent, "/1").await;

        let request =
            format!("{method} /2 HTTP/1.1\r\nhost: blog.localhost\r\nconnection: close\r\n\r\n");
        let close = async {
            let seen = wire.head().await;
            drop(wire);
            if survives {
                assert_eq!(answer(&mut wires, EMPTY).await, seen);
            }
        };
        let (reply, ()) = join!(visitor.raw(request), close);

        let status = if survives {
            "HTTP/1.1 200 "
        } else {
            "HTTP/1.1 502 "
        };
        assert!(
            reply.starts_with(status.as_bytes()),
            "{method}: {}",
            String::from_utf8_lossy(&reply)
        );
        assert!(wires.is_empty(), "{method} was sent once more");
    }
}

/// Wait until the agent has done with a request, and return what was wrong with it.
async fn ended(agent: &mut Running, target: &str) -> Option<String> {
    let report = agent.event(|event| match event {
        Event::Request(log) if log.target == target => Some(log.problem.clone()),
        _ => None,
    });
    report.await
}

/// Answer the next request on a new connection, and return its head.
async fn answer(wires: &mut Wires, response: &str) -> String {
    let mut wire = wires.next().await;
    let head = wire.head().await;
    wire.send(response).await;
    wire.finish().await;
    head
}

/// Send a head (without its empty line) and a response through the tunnel, and return what arrived of
/// each at the other end.
async fn carry(lab: &Lab, wires: &mut Wires, request: &str, response: &str) -> (String, String) {
    let visitor = lab.visitor("blog");
    let sent = format!("{request}\r\n");
    let mut wire = visitor.wire().await;
    wire.send(sent).await;
    let head = answer(wires, response).await;
    (head, wire.head().await)
}

fn values<'a>(head: &'a str, name: &str) -> Vec<&'a str> {
    head.split("\r\n")
        .filter_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
        .collect()
}

const EMPTY: &str = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";

const FORGED: &str = "GET / HTTP/1.1\r\nhost: blog.localhost\r\nx-forwarded-for: 6.6.6.6\r\nx-forwarded-proto: https\r\n\
     x-forwarded-host: evil\r\nforwarded: for=6.6.6.6\r\nx-real-ip: 6.6.6.6\r\nx_forwarded_for: 6.6.6.6\r\n";
