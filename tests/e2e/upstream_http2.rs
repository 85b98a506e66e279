//! Upstreams that speak HTTP/2, and what they do not process.

use std::path::Path;

use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream;
use nix::sys::signal::Signal;
use qtunnel::{Address, Carrier, Event, Upstream};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::lab::process::Process;
use crate::lab::{Lab, Server, eventually, ports, tools};

on_each_carrier!(what_an_upstream_excludes_by_goaway_is_sent_again_whatever_its_method);
async fn what_an_upstream_excludes_by_goaway_is_sent_again_whatever_its_method(carrier: Carrier) {
    let lab = Lab::start().await.over(carrier);
    // One request for each connection; the second is excluded unread.
    let upstream = Server::raw(|stream| async move {
        let _ = answering_first(stream, &frame(GOAWAY, 0, 0, &[0, 0, 0, 1, 0, 0, 0, 0])).await;
    })
    .await;
    let _agent = lab.agent("app", h2c(&upstream)).await;
    let visitor = lab.visitor("app");

    for _ in 0..3 {
        assert_eq!(visitor.get("/").await.status, 200);
        assert_eq!(visitor.post("/", "hello").await.status, 200);
    }
    let replies = join_all((0..20).map(|_| visitor.post("/", "hello"))).await;

    assert!(replies.iter().all(|reply| reply.status == 200));
}

on_each_carrier!(a_refused_stream_is_sent_again_and_a_reset_one_is_not);
async fn a_refused_stream_is_sent_again_and_a_reset_one_is_not(carrier: Carrier) {
    let lab = Lab::start().await.over(carrier);
    let upstream = Server::raw(|stream| async move {
        let _ = answering_first(stream, &frame(RST_STREAM, 0, 3, &[0, 0, 0, 7])).await;
    })
    .await;
    let _agent = lab.agent("app", h2c(&upstream)).await;
    let visitor = lab.visitor("app");
    for _ in 0..3 {
        assert_eq!(visitor.post("/", "hello").await.status, 200);
    }

    let upstream = Server::raw(|stream| async move {
        let _ = answering_first(stream, &frame(RST_STREAM, 0, 3, &[0, 0, 0, 2])).await;
    })
    .await;
    let mut agent = lab.agent("reset", h2c(&upstream)).await;
    let visitor = lab.visitor("reset");
    assert_eq!(visitor.post("/", "hello").await.status, 200);

    assert_eq!(visitor.post("/", "hello").await.status, 502);
    let problem = agent
        .event(|event| match event {
            Event::Request(log) => log.problem.clone(),
            _ => None,
        })
        .await;
    assert!(
        problem.contains("reset the HTTP/2 stream with INTERNAL_ERROR"),
        "{problem}"
    );
}

on_each_carrier!(another_connection_is_opened_when_one_is_full);
async fn another_connection_is_opened_when_one_is_full(carrier: Carrier) {
    let Some(node) = tools::program("node") else {
        return;
    };
    let mut command = node.script("http2_server.mjs");
    command.arg("2");
    let mut server = Process::spawn(command);
    let port = server.port().await;
    let lab = Lab::start().await.over(carrier);
    let _agent = lab
        .agent("app", at(&format!("h2c://127.0.0.1:{port}")))
        .await;
    let visitor = lab.visitor("app");

    let replies = join_all((0..20).map(|_| visitor.get("/"))).await;

    assert!(replies.iter().all(|reply| reply.status == 200));
    let connections: u32 = visitor.get("/connections").await.text().parse().unwrap();
    assert!((3..=20).contains(&connections), "{connections}");
}

on_each_carrier!(requests_over_tls_have_the_scheme_https);
async fn requests_over_tls_have_the_scheme_https(carrier: Carrier) {
    let Some(node) = tools::program("node") else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    certify(directory.path());
    let lab = Lab::start().await.over(carrier);
    let mut secure = node.script("http2_server.mjs");
    secure
        .arg("100")
        .arg(directory.path().join("cert.pem"))
        .arg(directory.path().join("key.pem"));
    let mut plain = node.script("http2_server.mjs");
    plain.arg("100");
    for (command, scheme, answer) in [
        (secure, "https+insecure", "https /a"),
        (plain, "h2c", "http /a"),
    ] {
        let mut server = Process::spawn(command);
        let port = server.port().await;
        let agent = lab
            .agent("app", at(&format!("{scheme}://localhost:{port}")))
            .await;

        let reply = lab.visitor("app").get("/a").await;

        assert_eq!(reply.text(), answer);
        agent.stop().await.unwrap();
    }
}

#[tokio::test]
async fn nginx_may_end_each_http2_connection_after_ten_requests() {
    let Some(nginx) = tools::program("nginx") else {
        return;
    };
    let (port, directory) = (ports::free(), home());
    let here = directory.path().display();
    let config = format!(
        "daemon off; master_process off; pid {here}/pid; error_log stderr;\n\
         events {{ worker_connections 1024; }}\nhttp {{\n\
         access_log off; client_body_temp_path {here}/body; proxy_temp_path {here}/proxy;\n\
         fastcgi_temp_path {here}/fastcgi; uwsgi_temp_path {here}/uwsgi; scgi_temp_path {here}/scgi;\n\
         keepalive_requests 10;\n\
         server {{ listen 127.0.0.1:{port} ssl http2; ssl_certificate {here}/cert.pem;\n\
         ssl_certificate_key {here}/key.pem; root {here}; }} }}\n"
    );
    let path = directory.path().join("config");
    std::fs::write(&path, config).unwrap();
    let mut command = nginx.command();
    command.args(["-e", "stderr", "-c"]).arg(&path);
    none_fails(command, port, None).await;
}

#[tokio::test]
async fn apache_may_restart_gracefully_while_its_http2_connections_are_full() {
    let (Some(apache), modules) = (tools::program("apache2"), "/usr/lib/apache2/modules") else {
        return;
    };
    let (port, directory) = (ports::free(), home());
    let here = directory.path().display();
    let config = format!(
        "ServerRoot {here}\nServerName localhost\nPidFile {here}/pid\nErrorLog /dev/stderr\n\
         Listen 127.0.0.1:{port}\nLoadModule mpm_event_module {modules}/mod_mpm_event.so\n\
         LoadModule authz_core_module {modules}/mod_authz_core.so\n\
         LoadModule ssl_module {modules}/mod_ssl.so\nLoadModule http2_module {modules}/mod_http2.so\n\
         DefaultRuntimeDir {here}\nMutex posixsem\nDocumentRoot {here}\n\
         Protocols h2 http/1.1\nH2MaxSessionStreams 8\n\
         SSLEngine on\nSSLCertificateFile {here}/cert.pem\nSSLCertificateKeyFile {here}/key.pem\n\
         User nobody\nGroup nogroup\n"
    );
    let path = directory.path().join("config");
    std::fs::write(&path, config).unwrap();
    let mut command = apache.command();
    command
        .arg("-X")
        .arg("-D")
        .arg("FOREGROUND")
        .arg("-f")
        .arg(&path);
    none_fails(command, port, None).await;
}

/// Send 1,500 requests to a server, which gets a signal now and then.
async fn none_fails(command: tokio::process::Command, port: u16, signal: Option<Signal>) {
    let server = Process::spawn(command);
    eventually("a server that listens", || async {
        TcpStream::connect(("127.0.0.1", port)).await.is_ok()
    })
    .await;
    let lab = Lab::start().await;
    let address = format!("https+insecure://localhost:{port}");
    let _agent = lab.agent("web", at(&address)).await;
    let visitor = lab.http2("web").await;

    let visits = (0..1500).map(|_| visitor.get("/page"));
    let mut replies = stream::iter(visits).buffer_unordered(50).enumerate();
    let mut failed = Vec::new();
    while let Some((number, reply)) = replies.next().await {
        if reply.status != 200 {
            failed.push((number, reply.status, reply.text().to_owned()));
        }
        if let (Some(signal), 0) = (signal, number % 400) {
            server.signal(signal);
        }
    }

    assert!(
        failed.is_empty(),
        "{} failed: {:?}",
        failed.len(),
        failed.first()
    );
}

/// A directory with a page and a certificate, which servers can read that give up their rights.
fn home() -> TempDir {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let all = std::fs::Permissions::from_mode(0o777);
    std::fs::set_permissions(directory.path(), all).unwrap();
    std::fs::write(directory.path().join("page"), "a page").unwrap();
    certify(directory.path());
    directory
}

fn certify(directory: &Path) {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    std::fs::write(directory.join("cert.pem"), made.cert.pem()).unwrap();
    std::fs::write(directory.join("key.pem"), made.signing_key.serialize_pem()).unwrap();
}

/// Answer the first request of a connection, and the next with this frame.
async fn answering_first(mut stream: TcpStream, then: &[u8]) -> std::io::Result<()> {
    let mut preface = [0; 24];
    stream.read_exact(&mut preface).await?;
    stream.write_all(&frame(SETTINGS, 0, 0, &[])).await?;
    let mut answered = false;
    loop {
        let mut header = [0; 9];
        stream.read_exact(&mut header).await?;
        let [a, b, c, kind, _, stream_id @ ..] = header;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        stream.read_exact(&mut payload).await?;
        match kind {
            HEADERS if !answered => {
                answered = true;
                let status_200 = [0x88];
                let answer = frame(HEADERS, 5, u32::from_be_bytes(stream_id), &status_200);
                stream.write_all(&answer).await?;
            }
            HEADERS => stream.write_all(then).await?,
            _ => {}
        }
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;

fn h2c(server: &Server) -> Upstream {
    at(&format!("h2c://{}", server.addr))
}

fn at(address: &str) -> Upstream {
    address.parse::<Address>().unwrap().into()
}
