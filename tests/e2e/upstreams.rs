//! Upstreams that are not plain HTTP on a port, with other people's servers.

use std::path::{Path, PathBuf};

use qtunnel::{Address, Carrier, Event, Upstream};
use tokio::join;

use crate::lab::process::Process;
use crate::lab::tools;
use crate::lab::{Lab, Server};

on_each_carrier!(an_upstream_on_a_unix_socket_is_reached);
async fn an_upstream_on_a_unix_socket_is_reached(carrier: Carrier) {
    let Some(node) = tools::program("node") else {
        return;
    };
    let lab = Lab::start().await.over(carrier);
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("app.sock");
    let mut command = node.script("socket_server.mjs");
    command.arg(&socket);
    let mut server = Process::spawn(command);
    server.line("listening").await;
    let _agent = lab
        .agent("app", upstream(&format!("unix:{}", socket.display())))
        .await;

    let reply = lab.visitor("app").post("/a?b", "hello").await;

    assert_eq!((reply.status, reply.text()), (200, "POST /a?b: hello"));
}

on_each_carrier!(an_upstream_whose_certificate_nobody_signed_is_reached_if_that_is_wanted);
async fn an_upstream_whose_certificate_nobody_signed_is_reached_if_that_is_wanted(
    carrier: Carrier,
) {
    let Some(secure) = Secure::start().await else {
        return;
    };
    let lab = Lab::start().await.over(carrier);
    let address = format!("https+insecure://localhost:{}", secure.port);
    let _agent = lab.agent("app", upstream(&address)).await;

    let reply = lab.visitor("app").post("/a?b", "hello").await;

    assert_eq!((reply.status, reply.text()), (200, "POST /a?b: hello"));
    assert_eq!(reply.header("x-version"), "2.0");
}

on_each_carrier!(an_upstream_whose_certificate_nobody_signed_is_refused_otherwise);
async fn an_upstream_whose_certificate_nobody_signed_is_refused_otherwise(carrier: Carrier) {
    let Some(secure) = Secure::start().await else {
        return;
    };
    let lab = Lab::start().await.over(carrier);
    let address = format!("https://localhost:{}", secure.port);
    let mut agent = lab.agent("app", upstream(&address)).await;

    let reply = lab.visitor("app").get("/").await;

    assert_eq!(
        (reply.status, reply.header("x-qtunnel-error")),
        (502, "upstream_unreachable")
    );
    let problem = agent
        .event(|event| match event {
            Event::Request(log) => log.problem.clone(),
            _ => None,
        })
        .await;
    assert!(problem.contains(&address), "{problem}");
    assert!(problem.contains("https+insecure://"), "{problem}");
    assert!(problem.contains("certificate"), "{problem}");
    assert!(!reply.text().contains("localhost:"), "{}", reply.text());
}

on_each_carrier!(tunnels_to_one_upstream_share_its_connections);
async fn tunnels_to_one_upstream_share_its_connections(carrier: Carrier) {
    let lab = Lab::start().await.over(carrier);
    let (upstream, mut wires) = Server::by_hand().await;
    let _agent = lab
        .agent_with("one", &upstream, |agent| {
            agent.tunnels.push(Lab::tunnel("two", &upstream));
        })
        .await;
    let (one, two) = (lab.visitor("one"), lab.visitor("two"));
    let answer = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";

    let (_, mut wire) = join!(one.get("/"), async {
        let mut wire = wires.next().await;
        wire.head().await;
        wire.send(answer).await;
        wire
    });
    let (reply, request) = join!(two.get("/"), async {
        let request = wire.head().await;
        wire.send(answer).await;
        request
    });

    assert_eq!(reply.status, 200);
    assert!(request.contains("host: two."), "{request}");
}

#[tokio::test]
async fn an_upstream_whose_certificate_is_out_of_its_time_is_named_with_the_dates() {
    for (from, until, words) in [
        (2020, 2021, "has expired"),
        (2089, 2090, "is not valid yet"),
    ] {
        let mut params = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(from, 1, 1);
        params.not_after = rcgen::date_time_ymd(until, 1, 1);
        let Some(secure) = Secure::with(params).await else {
            return;
        };
        let lab = Lab::start().await;
        let address = format!("https://localhost:{}", secure.port);
        let mut agent = lab.agent("app", upstream(&address)).await;

        lab.visitor("app").get("/").await;

        let problem = agent
            .event(|event| match event {
                Event::Request(log) => log.problem.clone(),
                _ => None,
            })
            .await;
        let (from, until) = (format!("{from}-01-01T"), format!("{until}-01-01T"));
        for text in [words, &from, &until, "clock", "https+insecure://"] {
            assert!(problem.contains(text), "{problem}");
        }
    }
}

/// An HTTPS server with a certificate that only it believes in.
struct Secure {
    port: u16,
    _server: Process,
    _directory: tempfile::TempDir,
}

impl Secure {
    async fn start() -> Option<Self> {
        Self::with(rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap()).await
    }

    async fn with(params: rcgen::CertificateParams) -> Option<Self> {
        let node = tools::program("node")?;
        let directory = tempfile::tempdir().unwrap();
        let (certificate, key) = self_signed(directory.path(), params);
        let mut command = node.script("tls_server.mjs");
        command.arg(certificate).arg(key);
        let mut server = Process::spawn(command);
        Some(Self {
            port: server.port().await,
            _server: server,
            _directory: directory,
        })
    }
}

fn self_signed(directory: &Path, params: rcgen::CertificateParams) -> (PathBuf, PathBuf) {
    let keys = rcgen::KeyPair::generate().unwrap();
    let made = params.self_signed(&keys).unwrap();
    let paths = (directory.join("cert.pem"), directory.join("key.pem"));
    std::fs::write(&paths.0, made.pem()).unwrap();
    std::fs::write(&paths.1, keys.serialize_pem()).unwrap();
    paths
}

fn upstream(address: &str) -> Upstream {
    address.parse::<Address>().unwrap().into()
}
