//! Answers of upstreams that are not written as HTTP says, and that curl and browsers read all the same.

use qtunnel::{Carrier, Event};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::lab::process::{Process, succeed};
use crate::lab::{Lab, Reply, Running, Server, ports, tools};

on_each_carrier!(a_folded_field_of_an_answer_arrives_as_one_line);
async fn a_folded_field_of_an_answer_arrives_as_one_line(carrier: Carrier) {
    let lab = Lab::start().await.over(carrier);
    for folded in ["a;\r\n  b;\r\n\tc", "a;\n b;\n c"] {
        let upstream = answering(format!("HTTP/1.1 200 OK\r\nX-Policy: {folded}\r\n{OK}")).await;
        let agent = lab.agent("blog", &upstream).await;

        let reply = lab.visitor("blog").get("/").await;

        assert_eq!((reply.status, reply.text()), (200, "ok"), "{folded:?}");
        assert_eq!(reply.header("x-policy"), "a; b; c");
        agent.stop().await.unwrap();
    }
}

#[tokio::test]
async fn nginx_may_fold_a_field_that_it_adds() {
    let Some(nginx) = tools::program("nginx") else {
        return;
    };
    let (port, directory) = (ports::free(), tempfile::tempdir().unwrap());
    let here = directory.path().display();
    let config = format!(
        "daemon off; master_process off; pid {here}/pid; error_log stderr;\nevents {{}}\nhttp {{\n\
         access_log off; client_body_temp_path {here}/body; proxy_temp_path {here}/proxy;\n\
         fastcgi_temp_path {here}/fastcgi; uwsgi_temp_path {here}/uwsgi; scgi_temp_path {here}/scgi;\n\
         server {{ listen 127.0.0.1:{port};\nadd_header Content-Security-Policy \"default-src 'self';\n\
         \x20   img-src data:\";\nlocation / {{ return 200 ok; }} }} }}\n"
    );
    let path = directory.path().join("config");
    std::fs::write(&path, config).unwrap();
    let mut command = nginx.command();
    command.args(["-e", "stderr", "-c"]).arg(&path);
    let _nginx = Process::spawn(command);
    listening(port).await;
    let lab = Lab::start().await;
    let _agent = lab.agent("blog", at(&format!("127.0.0.1:{port}"))).await;

    let reply = lab.visitor("blog").get("/").await;

    let policy = "default-src 'self'; img-src data:";
    assert_eq!(reply.header("content-security-policy"), policy);
}

on_each_carrier!(an_answer_may_have_a_thousand_fields_or_256_kib_over_either_version_of_http);
async fn an_answer_may_have_a_thousand_fields_or_256_kib_over_either_version_of_http(
    carrier: Carrier,
) {
    let lab = Lab::start().await.over(carrier);
    let cookies: String = (0..1000)
        .map(|i| format!("Set-Cookie: c{i}=1\r\n"))
        .collect();
    // curl takes no line of more than 100 KiB.
    let long = format!("Link: {}\r\n", "a".repeat(63 << 10)).repeat(4);
    for (fields, name) in [(cookies, "set-cookie"), (long, "link")] {
        let upstream = answering(format!("HTTP/1.1 200 OK\r\n{fields}{OK}")).await;
        let agent = lab.agent("blog", &upstream).await;

        let http1 = curl(&lab).await;
        let http2 = lab.http2("blog").await.get("/").await;

        let sent = count(&fields, name);
        let received = http2.headers.get_all(name).iter().count();
        assert_eq!((count(&http1, name), received), (sent, sent));
        assert!(http1.len() > fields.len() && http1.ends_with("ok"));
        assert_eq!(http2.text(), "ok");
        agent.stop().await.unwrap();
    }
}

#[tokio::test]
async fn an_answer_with_a_head_past_the_limit_is_refused_and_named() {
    let lab = Lab::start().await;
    let head = format!("HTTP/1.1 200 OK\r\nLink: {}\r\n{OK}", "a".repeat(256 << 10));
    let upstream = answering(head).await;
    let mut agent = lab.agent("blog", &upstream).await;

    let reply = lab.visitor("blog").get("/").await;

    refused(&reply, "more header fields than can be read");
    assert!(problem(&mut agent).await.contains("longer than 256 KiB"));
}

on_each_carrier!(what_browsers_bear_passes);
async fn what_browsers_bear_passes(carrier: Carrier) {
    let lab = Lab::start().await.over(carrier);
    for answer in [
        "HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 200\nContent-Length: 2\n\nok",
        "\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1  200  OK\r\nContent-Length : 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nno colon\r\n: no name\r\nA(b): c\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nA: \x01b\r\n\r\nok",
        "HTTP/1.0 200 OK\r\n\r\nok",
        "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked, chunked\r\n\r\n2;a=\"b\"\r\nok\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 9\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n\r\nok",
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 \r\nLink : </a>\r\n\r\nHTTP/1.1 200 OK\r\n\r\nok",
    ] {
        let upstream = answering(answer.to_owned()).await;
        let agent = lab.agent("blog", &upstream).await;

        let reply = lab.visitor("blog").get("/").await;

        assert_eq!((reply.status, reply.text()), (200, "ok"), "{answer:?}");
        agent.stop().await.unwrap();
    }
}

on_each_carrier!(an_answer_whose_end_can_be_understood_in_two_ways_is_refused_by_the_fields_name);
async fn an_answer_whose_end_can_be_understood_in_two_ways_is_refused_by_the_fields_name(
    carrier: Carrier,
) {
    let lab = Lab::start().await.over(carrier);
    for (fields, name) in [
        ("Content-Length: 2\r\nContent-Length: 9", "content-length"),
        ("Content-Length: +2", "content-length"),
        ("Content-Length\x0b: 2", "Content-Length\\x0b"),
        ("Transfer-Encoding: gzip, chunked", "transfer-encoding"),
        ("Transfer-Encoding: chun\x01ked", "transfer-encoding"),
    ] {
        let upstream = answering(format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\nok")).await;
        let mut agent = lab.agent("blog", &upstream).await;

        let reply = lab.visitor("blog").get("/").await;

        refused(&reply, "the header of the service's answer is malformed");
        let problem = problem(&mut agent).await;
        assert!(problem.contains(name), "{fields:?}: {problem}");
        agent.stop().await.unwrap();
    }
}

#[tokio::test]
async fn what_an_upstream_hides_in_a_value_becomes_neither_a_field_nor_an_answer() {
    let lab = Lab::start().await;
    let hidden = "A: 1\rSet-Cookie: a=b\r\rHTTP/1.1 200 OK\0";
    let upstream = answering(format!("HTTP/1.1 200 OK\r\n{hidden}\r\n{OK}")).await;
    let _agent = lab.agent("blog", &upstream).await;

    let raw = lab
        .visitor("blog")
        .raw(format!(
            "GET / HTTP/1.1\r\nHost: blog.{}\r\nConnection: close\r\n\r\n",
            lab.domain
        ))
        .await;

    let raw = String::from_utf8(raw).unwrap();
    assert_eq!(
        raw.matches('\r').count(),
        raw.matches("\r\n").count(),
        "{raw:?}"
    );
    assert_eq!(raw.matches("\r\nset-cookie").count(), 0, "{raw:?}");
}

on_each_carrier!(what_is_not_http_is_shown_in_the_log_with_a_hint);
async fn what_is_not_http_is_shown_in_the_log_with_a_hint(carrier: Carrier) {
    let lab = Lab::start().await.over(carrier);
    let cases: [(&[u8], &str); 3] = [
        (b"SSH-2.0-OpenSSH_9.9\r\n", "SSH-2.0-OpenSSH_9.9\\r\\n"),
        (b"\x15\x03\x01\x00\x02\x02\x0a", "https://"),
        (b"\0\0\0\x04\0\0\0\0\0", "h2c://"),
    ];
    for (bytes, shown) in cases {
        let upstream = Server::raw(move |mut stream| async move {
            let _ = stream.write_all(bytes).await;
            let _ = stream.read(&mut [0; 4096]).await;
        })
        .await;
        let mut agent = lab.agent("blog", &upstream).await;

        let reply = lab.visitor("blog").get("/").await;

        refused(&reply, "did not answer in HTTP");
        assert!(!reply.text().contains("127.0.0.1"), "{}", reply.text());
        let problem = problem(&mut agent).await;
        assert!(problem.contains(shown), "{problem}");
        agent.stop().await.unwrap();
    }
}

on_each_carrier!(an_upstream_that_is_given_the_wrong_scheme_has_the_right_one_in_the_log);
async fn an_upstream_that_is_given_the_wrong_scheme_has_the_right_one_in_the_log(carrier: Carrier) {
    let lab = Lab::start().await.over(carrier);
    let silent = Server::text("hello").await;
    let answering = answering("HTTP/1.1 400 Bad Request\r\n\r\n".to_owned()).await;
    for (scheme, upstream) in [
        ("https", &silent),
        ("https+insecure", &answering),
        ("h2c", &silent),
        ("h2c", &answering),
    ] {
        let address = format!("{scheme}://{}", upstream.addr);
        let mut agent = lab.agent("blog", at(&address)).await;

        let reply = lab.visitor("blog").get("/").await;

        assert_eq!(reply.status, 502);
        let problem = problem(&mut agent).await;
        assert!(problem.contains("write http://HOST:PORT"), "{problem}");
        agent.stop().await.unwrap();
    }
}

#[tokio::test]
async fn no_response_makes_the_agent_violate_the_protocol_with_the_edge() {
    let lab = Lab::start().await;
    // More than a stream carries.
    for length in ["4611686018427387904", "9223372036854775807"] {
        let response = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
        let upstream = answering(response).await;
        let mut agent = lab.agent("blog", &upstream).await;

        // Often enough for the edge to close the session.
        for _ in 0..20 {
            let reply = lab.visitor("blog").get("/").await;

            refused(&reply, "the header of the service's answer is malformed");
        }

        assert!(problem(&mut agent).await.contains("content-length"));
        assert_eq!(
            agent.count(|event| matches!(event, Event::Reconnecting { .. })),
            0
        );
        agent.stop().await.unwrap();
    }
}

/// The end of a head, and a body.
const OK: &str = "Content-Length: 2\r\n\r\nok";

/// Answer each connection's request with these bytes, and close it.
async fn answering(answer: String) -> Server {
    Server::raw(move |mut stream| {
        let answer = answer.clone();
        async move {
            let _ = stream.read(&mut [0; 4096]).await;
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    })
    .await
}

/// What curl shows of the tunnel's answer over HTTP/1.1, head and body.
async fn curl(lab: &Lab) -> String {
    let curl = tools::program("curl").expect("every machine that builds this has it");
    let mut command = curl.command();
    let host = format!("blog.{}", lab.domain);
    let port = lab.https.port();
    command
        .args([
            "--silent",
            "--include",
            "--insecure",
            "--http1.1",
            "--resolve",
        ])
        .arg(format!("{host}:{port}:127.0.0.1"))
        .arg(format!("https://{host}:{port}/"));
    succeed(command).await
}

fn count(text: &str, name: &str) -> usize {
    let name = format!("{name}: ");
    let names = |line: &&str| line.to_ascii_lowercase().starts_with(&name);
    text.lines().filter(names).count()
}

fn refused(reply: &Reply, why: &str) {
    let code = reply.header("x-qtunnel-error");
    assert_eq!((reply.status, code), (502, "upstream_invalid"));
    assert!(reply.text().contains(why), "{}", reply.text());
}

async fn problem(agent: &mut Running) -> String {
    agent
        .event(|event| match event {
            Event::Request(log) => log.problem.clone(),
            _ => None,
        })
        .await
}

fn at(address: &str) -> qtunnel::Upstream {
    address.parse::<qtunnel::Address>().unwrap().into()
}

async fn listening(port: u16) {
    crate::lab::eventually("a server that listens", || async {
        tokio::net::TcpStream::connect(("127.0.0.1", port))
            .await
            .is_ok()
    })
    .await;
}
