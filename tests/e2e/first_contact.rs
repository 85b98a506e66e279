//! The first minutes with the program: what it says to do next, what newcomers type, and how it ends.

use std::fs;
use std::net::UdpSocket;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use crate::lab::process::{Process, qtunnel, run};
use crate::lab::tools;
use crate::lab::{EdgeProcess, Server, way};

/// Run what a shell gets when a line is pasted, in a directory that has nothing to do with the edge's.
fn pasted(home: &Path, line: &str) -> Command {
    let program = Path::new(env!("CARGO_BIN_EXE_qtunnel"));
    let mut path = program.parent().unwrap().as_os_str().to_owned();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    let template = qtunnel(home, [""; 0]);
    let mut shell = Command::new("sh");
    shell.args(["-c", line]).current_dir("/").env("PATH", path);
    for (name, value) in template.as_std().get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    shell
}

fn file(home: &Path, name: &str, content: impl AsRef<[u8]>) -> String {
    let path = home.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, content).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Run the program to its end, and return its code and what it said.
async fn ended(home: &Path, args: &[&str]) -> (i32, String) {
    let mut process = Process::qtunnel(home, args);
    let code = process.ended().await.code().unwrap_or(-1);
    (code, process.seen.join("\n"))
}

#[tokio::test]
async fn the_line_of_a_local_edge_works_when_it_is_pasted_whatever_the_flags() {
    let home = tempfile::tempdir().unwrap();
    // Somebody who has logged in elsewhere.
    file(
        home.path(),
        ".config/qtunnel/config.toml",
        "server = \"elsewhere.invalid\"\ntoken = \"other\"\n",
    );
    for flags in [
        &["--http", "0", "--https", "0", "--quic", "0"][..],
        &["--http", "0", "--https", "off", "--quic", "[::1]:0"],
        &["--http", "0", "--https", "0", "--quic", "off"],
        &["--http", "0", "--https", "off", "--quic", "off"],
        &[
            "--http",
            "0",
            "--https",
            "off",
            "--quic",
            "0",
            "--state-dir",
            "it's a state",
        ],
    ] {
        let args = [&["serve"], flags].concat();
        let mut edge = Process::qtunnel(home.path(), args);
        let line = edge.line("publish something: ").await;
        let line = line.split("publish something: ").nth(1).unwrap();

        let mut agent = Process::spawn(pasted(home.path(), &format!("exec {line}")));

        agent.line("connected over").await;
    }
}

#[tokio::test]
async fn the_login_line_of_a_later_start_asks_for_the_token() {
    let home = tempfile::tempdir().unwrap();
    let args =
        "serve --domain tunnel.test --http 127.0.0.1:0 --https 127.0.0.1:0 --quic 127.0.0.1:0";
    for start in ["first", "second"] {
        let mut edge = Process::qtunnel(home.path(), args.split(' '));
        let said = edge.line("on the laptop: ").await;
        if start == "first" {
            continue;
        }
        let line = said.split("on the laptop: ").nth(1).unwrap();
        let mut command = pasted(home.path(), line);
        command.stdin(Stdio::piped()).kill_on_drop(true);
        let mut login = command.spawn().unwrap();
        let mut stdin = login.stdin.take().unwrap();
        stdin.write_all(b"\xef\xbb\xbfqt_sesame\r\n").await.unwrap();
        drop(stdin);

        assert!(login.wait().await.unwrap().success(), "{line}");
        let config = fs::read_to_string(home.path().join(".config/qtunnel/config.toml")).unwrap();
        assert!(config.contains("\"qt_sesame\""), "{config}");
        assert!(config.contains("tunnel.test:"), "{config}");
    }
}

#[tokio::test]
async fn an_edge_that_is_not_there_is_named_at_once_and_in_short() {
    let home = tempfile::tempdir().unwrap();
    let port = UdpSocket::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let server = format!("127.0.0.1:{port}");
    let pin = format!("sha256/{}", "A".repeat(43));
    let args = ["connect", "3000", "--server", &server, "--pin", &pin];
    let begun = Instant::now();

    let mut agent = Process::qtunnel(home.path(), args);
    let line = agent.line("nothing listens").await;

    assert!(
        begun.elapsed() < way::patient(Duration::from_secs(3)),
        "{:?}",
        begun.elapsed()
    );
    assert!(
        line.contains(&server) && line.contains("qtunnel serve"),
        "{line}"
    );
    assert!(line.len() < 200, "{line}");
    let (code, said) = ended(home.path(), &[&args[..], &["--exit-on-failure"]].concat()).await;
    assert_eq!(code, 5, "{said}");
}

#[tokio::test]
async fn an_agent_that_waits_for_an_answer_says_so() {
    let home = tempfile::tempdir().unwrap();
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let server = silent.local_addr().unwrap().to_string();
    let pin = format!("sha256/{}", "A".repeat(43));
    let begun = Instant::now();

    let args = ["connect", "3000", "--server", &server, "--pin", &pin];
    let mut agent = Process::qtunnel(home.path(), args);
    let line = agent.line("still trying").await;

    assert!(
        begun.elapsed() < way::patient(Duration::from_secs(4)),
        "{:?}",
        begun.elapsed()
    );
    assert!(line.contains(&server), "{line}");
}

#[tokio::test]
async fn what_users_of_other_tunnels_type_is_done_or_answered_in_one_line() {
    let home = tempfile::tempdir().unwrap();
    let edge = EdgeProcess::start(home.path(), &["--token", "sesame"]).await;
    let (server, ca) = (edge.server(), edge.ca());
    let ca = ca.to_str().unwrap();
    for typed in [
        "http 3000 --server",
        "3000 --server",
        "connect http localhost:3000/ --server",
        "local 3000 --to",
        "tunnel --url http://localhost:3000 --server",
    ] {
        let mut args: Vec<_> = typed.split(' ').collect();
        args.extend([server.as_str(), "--ca", ca, "--authtoken", "sesame"]);

        let mut agent = Process::qtunnel(home.path(), args);

        agent.line("connected over").await;
    }
    for (typed, says) in [
        ("tcp 22", "only HTTP"),
        ("connect tcp 22", "only HTTP"),
        ("connect tcp://localhost:22", "only HTTP"),
        ("connect localhost:3000/path", "write localhost:3000"),
        (
            "connect 3000 --hostname blog.example.com",
            "--subdomain blog",
        ),
        ("start --all", "qtunnel connect 3000"),
        ("config add-authtoken T", "qtunnel login"),
        ("-c frpc.toml", "qtunnel.toml"),
        ("connect 3000 --colour", "--help"),
        ("connect 3000 --sever edge.example", "--server"),
        ("serve --frobnicate", "--help"),
    ] {
        let args: Vec<_> = typed.split(' ').collect();

        let (code, said) = ended(home.path(), &args).await;

        assert_eq!((code, said.lines().count()), (2, 1), "{typed}: {said}");
        assert!(said.contains(says), "{typed}: {said}");
    }
}

#[tokio::test]
async fn files_may_begin_with_a_byte_order_mark_and_have_the_line_ends_of_windows() {
    let home = tempfile::tempdir().unwrap();
    let marked = |text: &str| format!("\u{feff}{}", text.replace('\n', "\r\n"));
    let token = file(home.path(), "token.txt", marked("sesame\n"));
    let edge = EdgeProcess::start(home.path(), &["--token-file", &token]).await;
    let ca = marked(&fs::read_to_string(edge.ca()).unwrap());
    file(home.path(), "ca.pem", ca);
    let config = format!(
        "\u{feff}upstream = \"3000\"\r\nserver = \"{}\"\r\nca = \"ca.pem\"\r\ntoken-file = \"token.txt\"\r\n",
        edge.server()
    );
    let wide: Vec<u8> = config.encode_utf16().flat_map(u16::to_le_bytes).collect();

    for content in [config.into_bytes(), wide] {
        file(home.path(), "qtunnel.toml", content);
        let mut agent = Process::qtunnel(home.path(), ["connect"]);

        agent.line("connected over").await;
    }
}

#[tokio::test]
async fn a_certificate_out_of_its_time_or_for_another_name_is_named_as_such() {
    for (name, until, words) in [
        (
            "localhost",
            2021,
            ["expired", "2020-01-01T00:00:00Z", "clock"],
        ),
        (
            "other.example",
            2090,
            ["other.example", "not for localhost", "--server"],
        ),
    ] {
        let home = tempfile::tempdir().unwrap();
        let mut params = rcgen::CertificateParams::new([name.to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(until, 1, 1);
        let keys = rcgen::KeyPair::generate().unwrap();
        let made = params.self_signed(&keys).unwrap();
        let cert = file(home.path(), "cert.pem", made.pem());
        let key = file(home.path(), "key.pem", keys.serialize_pem());
        let edge = EdgeProcess::start(home.path(), &["--cert", &cert, "--key", &key]).await;
        let server = format!("localhost:{}", edge.quic.port());
        for command in [&["connect", "3000"][..], &["check"]] {
            let args = [command, &["--server", &server, "--ca", &cert]].concat();

            let (code, said) = ended(home.path(), &args).await;

            assert_eq!(code, 2, "{said}");
            for text in words {
                assert!(
                    said.contains(text),
                    "{command:?} does not say {text:?}: {said}"
                );
            }
        }
    }
}

#[tokio::test]
async fn the_operator_hears_of_requests_that_fail() {
    let home = tempfile::tempdir().unwrap();
    let mut edge = EdgeProcess::start(home.path(), &[]).await;
    let visitor = edge.visitor("blog");

    for _ in 0..10 {
        assert_eq!(visitor.get("/secret-path").await.status, 404);
    }
    let line = edge.process.line("request failed").await;

    for text in ["blog.localhost", "404", "no_such_tunnel"] {
        assert!(line.contains(text), "{line}");
    }
    edge.process.signal(Signal::SIGTERM);
    edge.process.ended().await;
    let told = edge
        .process
        .seen
        .iter()
        .filter(|line| line.contains("request failed"));
    assert_eq!(told.count(), 1, "{:#?}", edge.process.seen);
    assert!(!edge.process.seen.join("\n").contains("secret-path"));
}

#[tokio::test]
async fn an_event_stream_at_rest_does_not_keep_an_agent_that_is_told_to_stop() {
    let home = tempfile::tempdir().unwrap();
    let edge = EdgeProcess::start(home.path(), &[]).await;
    let upstream = Server::raw(|mut stream| async move {
        let _ = stream.read(&mut [0; 4096]).await;
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: 1\n\n";
        let _ = stream.write_all(head.as_bytes()).await;
        std::future::pending::<()>().await;
    })
    .await;
    let mut agent = agent_of(&edge, home.path(), &upstream.addr.to_string(), &[]);
    agent.line("connected over").await;
    let mut visitor = edge.visitor("blog").connect().await;
    visitor
        .write_all(b"GET / HTTP/1.1\r\nhost: blog.localhost\r\n\r\n")
        .await
        .unwrap();
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains("data: 1") {
        assert!(visitor.read_buf(&mut seen).await.unwrap() > 0);
    }
    let begun = Instant::now();

    agent.signal(Signal::SIGINT);
    let status = agent.ended().await;

    assert_eq!(status.code(), Some(0));
    assert!(
        begun.elapsed() < way::patient(Duration::from_secs(5)),
        "{:?}",
        begun.elapsed()
    );
    let said = agent.seen.join("\n");
    assert!(said.contains("cut 1 event stream"), "{said}");
}

#[tokio::test]
async fn the_second_signal_ends_an_agent_within_a_second() {
    let home = tempfile::tempdir().unwrap();
    let edge = EdgeProcess::start(home.path(), &[]).await;
    let (upstream, mut wires) = Server::by_hand().await;
    let mut agent = agent_of(&edge, home.path(), &upstream.addr.to_string(), &[]);
    agent.line("connected over").await;
    let mut visitor = edge.visitor("blog").connect().await;
    visitor
        .write_all(b"GET / HTTP/1.1\r\nhost: blog.localhost\r\n\r\n")
        .await
        .unwrap();
    let mut wire = wires.next().await;
    wire.head().await;

    agent.signal(Signal::SIGTERM);
    agent.line("again to stop at once").await;
    let begun = Instant::now();
    agent.signal(Signal::SIGTERM);
    let status = agent.ended().await;

    assert_eq!(status.code(), Some(1));
    assert!(
        begun.elapsed() < way::patient(Duration::from_secs(1)),
        "{:?}",
        begun.elapsed()
    );
}

/// A network namespace in which every question to DNS is lost: a thread that looks a name up hangs.
#[tokio::test]
async fn a_name_server_that_never_answers_keeps_no_process_that_is_told_to_stop() {
    let Some(unshare) = tools::program("unshare") else {
        return;
    };
    let home = tempfile::tempdir().unwrap();
    let resolv = file(
        home.path(),
        "resolv.conf",
        "nameserver 10.9.9.2\noptions timeout:30 attempts:5\n",
    );
    // What is sent to the far end of the pair is for nobody there.
    let setup = format!(
        "mount --bind {resolv} /etc/resolv.conf && ip link set lo up && \
         ip link add v0 address 02:00:00:00:00:01 type veth peer name v1 && \
         ip addr add 10.9.9.1/24 dev v0 && ip link set v0 up && ip link set v1 up && \
         ip neigh add 10.9.9.2 lladdr 02:00:00:00:00:02 dev v0"
    );
    let inside = |script: String| {
        let mut command = unshare.command();
        command.args(["--map-root-user", "--net", "--mount", "sh", "-c", &script]);
        command.current_dir(home.path()).env("HOME", home.path());
        command
            .env_remove("XDG_STATE_HOME")
            .env_remove("XDG_CONFIG_HOME");
        command
    };
    if !run(inside(format!("{setup} && true")))
        .await
        .status
        .success()
    {
        return tools::skip("needs network namespaces");
    }
    let program = env!("CARGO_BIN_EXE_qtunnel");
    let pin = format!("sha256/{}", "A".repeat(43));
    let connect = format!("exec {program} connect 3000 --server edge.example --pin {pin}");

    for signals in [1, 2] {
        let mut agent = Process::spawn(inside(format!("{setup} && {connect}")));
        agent.line("still trying").await;
        let begun = Instant::now();
        agent.signal(Signal::SIGTERM);
        if signals == 2 {
            agent.signal(Signal::SIGTERM);
        }
        agent.ended().await;

        assert!(
            begun.elapsed() < way::patient(Duration::from_secs(2)),
            "{:?}",
            begun.elapsed()
        );
    }
}

fn agent_of(edge: &EdgeProcess, home: &Path, upstream: &str, more: &[&str]) -> Process {
    let (server, ca) = (edge.server(), edge.ca());
    let ca = ca.to_str().unwrap();
    let args = [
        "connect",
        upstream,
        "--server",
        &server,
        "--ca",
        ca,
        "--subdomain",
        "blog",
    ];
    Process::qtunnel(home, [&args[..], more].concat())
}
