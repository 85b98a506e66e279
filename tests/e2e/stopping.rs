//! How programs end: what keeps them for the grace period, what does not, and the second signal.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper::body::Incoming;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, pipe, write};
use qtunnel::Event;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpStream, UdpSocket};
use tokio::process::Child;

use crate::lab::process::qtunnel;
use crate::lab::{Lab, Server, Visitor, eventually, way, within};

/// Longer than any test waits.
const GRACE: Duration = Duration::from_secs(3600);

/// Answer `/ticks` with an event stream on which much happens, others with one on which nothing does after the
/// first event, and switch protocols where that is asked for.
async fn live() -> Server {
    Server::raw(|mut stream| async move {
        let mut request = [0; 4096];
        let read = stream.read(&mut request).await.unwrap_or(0);
        let request = String::from_utf8_lossy(&request[..read]).to_ascii_lowercase();
        let head: &[u8] = match request.contains("upgrade: websocket") {
            true => b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
            false => b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: 1\n\n",
        };
        let _ = stream.write_all(head).await;
        while request.contains("get /ticks") && stream.write_all(b"data: tick\n\n").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        // Until the agent gives up.
        let _ = stream.read(&mut [0; 64]).await;
    })
    .await
}

/// Begin to read an event stream over HTTP/1.1.
async fn events(visitor: &Visitor, path: &str) -> Incoming {
    let response = visitor.begin(Request::get(path), Empty::<Bytes>::new());
    let mut body = response.await.into_body();
    within("the first event", body.frame()).await;
    body
}

/// Open a WebSocket, and say nothing on it.
async fn websocket(visitor: &Visitor) -> TcpStream {
    let mut wire = visitor.connect().await;
    let request = format!(
        "GET / HTTP/1.1\r\nhost: {}\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        visitor.host
    );
    wire.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let read = within("the switch", wire.read_buf(&mut head)).await;
        assert!(read.unwrap() > 0, "{}", String::from_utf8_lossy(&head));
    }
    assert!(head.starts_with(b"HTTP/1.1 101"));
    wire
}

/// Read ticks for twice as long as anything may rest.
async fn keep_ticking(ticks: &mut Incoming) {
    for _ in 0..30 {
        let tick = within("a tick", ticks.frame()).await;
        assert!(matches!(tick, Some(Ok(_))), "{tick:?}");
    }
}

#[tokio::test]
async fn streams_at_rest_do_not_keep_an_edge_that_stops() {
    let mut lab = Lab::with(|edge| edge.grace_period = GRACE).await;
    let upstream = live().await;
    let _agent = lab.agent("app", &upstream).await;
    let (visitor, http2) = (lab.visitor("app"), lab.http2("app").await);
    let over_http1 = events(&visitor, "/").await;
    let over_http2 = http2
        .begin(Request::get(http2.uri("/")), Empty::<Bytes>::new())
        .await
        .unwrap();
    let mut over_http2 = over_http2.into_body();
    within("the first event", over_http2.frame()).await;
    let mut websocket = websocket(&visitor).await;
    let _says_nothing = TcpStream::connect(lab.https).await.unwrap();

    let stopped = lab.begin_stop();

    within("the edge's end", stopped).await.unwrap();
    assert!(
        over_http1.collect().await.is_err(),
        "half an answer looks whole"
    );
    assert!(
        over_http2.collect().await.is_err(),
        "half an answer looks whole"
    );
    assert!(!matches!(websocket.read(&mut [0]).await, Ok(1..)));
}

#[tokio::test]
async fn what_moves_keeps_an_edge_that_stops_and_what_rests_beside_it_is_cut() {
    let mut lab = Lab::with(|edge| edge.grace_period = GRACE).await;
    let upstream = live().await;
    let _agent = lab.agent("app", &upstream).await;
    let visitor = lab.visitor("app");
    let mut ticks = events(&visitor, "/ticks").await;
    let mut websocket = websocket(&visitor).await;

    let stopped = lab.begin_stop();

    let cut = within("the cut", websocket.read(&mut [0])).await;
    assert!(!matches!(cut, Ok(1..)), "{cut:?}");
    keep_ticking(&mut ticks).await;
    assert!(!stopped.is_finished());
    drop(ticks);
    within("the edge's end", stopped).await.unwrap();
}

#[tokio::test]
async fn streams_at_rest_do_not_keep_an_agent_that_stops() {
    let lab = Lab::start().await;
    let upstream = live().await;
    let mut agent = lab
        .agent_with("app", &upstream, |agent| agent.grace_period = GRACE)
        .await;
    let visitor = lab.visitor("app");
    let events = events(&visitor, "/").await;
    let mut websocket = websocket(&visitor).await;

    agent.begin_stop();

    let told = agent
        .event(|event| match event {
            Event::Notice(text) => text.contains("cut").then(|| text.clone()),
            _ => None,
        })
        .await;
    assert!(told.contains("1 event stream and 1 WebSocket"), "{told}");
    agent.ended().await.unwrap();
    assert!(
        events.collect().await.is_err(),
        "half an answer looks whole"
    );
    let cut = within("the cut", websocket.read(&mut [0])).await;
    assert!(!matches!(cut, Ok(1..)), "{cut:?}");
}

#[tokio::test]
async fn what_moves_keeps_an_agent_that_stops() {
    let lab = Lab::start().await;
    let upstream = live().await;
    let mut agent = lab
        .agent_with("app", &upstream, |agent| agent.grace_period = GRACE)
        .await;
    let mut ticks = events(&lab.visitor("app"), "/ticks").await;

    agent.begin_stop();

    keep_ticking(&mut ticks).await;
    assert_eq!(agent.count(|event| matches!(event, Event::Notice(_))), 0);
    drop(ticks);
    agent.ended().await.unwrap();
}

#[tokio::test]
async fn the_second_signal_ends_a_program_whose_messages_nobody_takes() {
    for signals in [
        [Signal::SIGTERM, Signal::SIGINT],
        [Signal::SIGTERM, Signal::SIGTERM],
        [Signal::SIGINT, Signal::SIGINT],
    ] {
        for (args, ready) in [
            (
                &[
                    "serve",
                    "--http",
                    "127.0.0.1:0",
                    "--https",
                    "off",
                    "--quic",
                    "127.0.0.1:0",
                ][..],
                "  quic",
            ),
            (&["demo", "--port", "0"], "open the first URL"),
        ] {
            let home = tempfile::tempdir().unwrap();
            let (_reader, mut child) = stuck(home.path(), args);
            let pid = Pid::from_raw(child.id().unwrap() as i32);
            let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
            while let Some(line) = within("the start", lines.next_line()).await.unwrap()
                && !line.contains(ready)
            {}
            eventually("the end of its start", async || hears_signals(pid)).await;

            kill(pid, signals[0]).unwrap();
            // It says so, and that it drains.
            eventually("the first signal to be heard", async || is_stuck(pid)).await;
            let begun = Instant::now();
            kill(pid, signals[1]).unwrap();
            let status = within("the end", child.wait()).await.unwrap();

            assert_eq!(status.code(), Some(1), "{args:?} {signals:?}");
            assert!(
                begun.elapsed() < way::patient(Duration::from_secs(1)),
                "{args:?} {signals:?}: {:?}",
                begun.elapsed()
            );
        }
    }
}

#[tokio::test]
async fn one_signal_ends_what_has_nothing_to_drain_whatever_it_waits_for() {
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let server = silent.local_addr().unwrap().to_string();
    let home = tempfile::tempdir().unwrap();
    let fifo = home.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let fifo = fifo.to_str().unwrap();
    let pin = format!("sha256/{}", "A".repeat(43));

    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        for args in [
            &["check", "--server", &server, "--pin", &pin][..],
            &[
                "check",
                "--server",
                &server,
                "--token-file",
                fifo,
                "--pin",
                &pin,
            ],
            &["login", &server],
            &["login", &server, "--token-file", fifo],
            &["serve", "--token-file", fifo],
        ] {
            let mut command = qtunnel(home.path(), args);
            // Nobody ever writes to it.
            command.stdin(Stdio::piped()).kill_on_drop(true);
            command.stdout(Stdio::null()).stderr(Stdio::null());
            let mut child = command.spawn().unwrap();
            let pid = Pid::from_raw(child.id().unwrap() as i32);
            eventually("the program to wait", async || is_waiting(pid)).await;

            let begun = Instant::now();
            kill(pid, signal).unwrap();
            within("the end", child.wait()).await.unwrap();

            assert!(
                begun.elapsed() < way::patient(Duration::from_secs(1)),
                "{args:?} {signal}: {:?}",
                begun.elapsed()
            );
        }
    }
}

/// Start a program whose stderr is full from the beginning, and which writes there when it drains.
fn stuck(home: &Path, args: &[&str]) -> (OwnedFd, Child) {
    let (reader, writer) = pipe().unwrap();
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    while write(&writer, &[b'.'; 4096]).is_ok() {}
    while write(&writer, b".").is_ok() {}
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
    let mut command = qtunnel(home, args);
    command
        .env("RUST_LOG", "qtunnel::edge::server=info")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(writer)
        .kill_on_drop(true);
    (reader, command.spawn().unwrap())
}

/// Report whether a thread of a process cannot write.
fn is_stuck(pid: Pid) -> bool {
    threads(pid, "wchan")
        .iter()
        .any(|at| at.contains("pipe_write"))
}

/// Report whether a process has the thread that waits for signals.
fn hears_signals(pid: Pid) -> bool {
    threads(pid, "comm")
        .iter()
        .any(|name| name.trim() == "signals")
}

/// Report whether all threads of a process wait, and it is past its start.
fn is_waiting(pid: Pid) -> bool {
    let program = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
    let waits = threads(pid, "wchan");
    program.ends_with("qtunnel") && !waits.is_empty() && waits.iter().all(|at| at != "0")
}

/// Read what Linux has to say of each thread of a process.
fn threads(pid: Pid, what: &str) -> Vec<String> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task"));
    let threads = threads.into_iter().flatten().flatten();
    threads
        .filter_map(|thread| std::fs::read_to_string(thread.path().join(what)).ok())
        .collect()
}
