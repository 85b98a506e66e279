//! A service manager: it passes sockets, hears when the edge is ready, and has it replaced.

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::io::FdFlags;
use tokio::net::UnixDatagram;
use tokio::process::Command;

use super::upstream;
use crate::lab::process::Process;
use crate::lab::tools::program;
use crate::lab::{EdgeProcess, Lab, Running, Visitor, within};

#[tokio::test]
async fn sockets_of_the_service_manager_are_used_and_not_bound_again() {
    let home = tempfile::tempdir().unwrap();
    let (tcp, udp) = (
        TcpListener::bind("127.0.0.1:0").unwrap(),
        UdpSocket::bind("127.0.0.1:0").unwrap(),
    );
    for socket in [tcp.as_fd(), udp.as_fd()] {
        rustix::io::fcntl_setfd(socket, FdFlags::empty()).unwrap();
    }
    let (http, quic) = (tcp.local_addr().unwrap(), udp.local_addr().unwrap());
    let qtunnel = env!("CARGO_BIN_EXE_qtunnel");
    // bash chooses numbers that are free: the sockets may have those that they are to get.
    let script = format!(
        "exec {{tcp}}<&{} {{udp}}<&{}; exec 3<&$tcp 4<&$udp {{tcp}}<&- {{udp}}<&-; \
         LISTEN_PID=$$ LISTEN_FDS=2 exec {qtunnel} serve --https off --http {http} --quic {quic}",
        tcp.as_raw_fd(),
        udp.as_raw_fd()
    );
    let mut command = Command::new("bash");
    command.args(["-c", &script]).env("HOME", home.path());

    let mut edge = Process::spawn(command);

    edge.line("  quic ").await;
    let upstream = upstream().await;
    let _agent = Running::start(agent(home.path(), quic, &upstream)).await;
    let visitor = Visitor::new(http, "blog.localhost".into());
    assert_eq!(visitor.get("/").await.text(), "here");
}

#[tokio::test]
async fn an_edge_starts_when_systemd_has_a_visitor_for_it() {
    let Some(systemd) = program("systemd-socket-activate") else {
        return;
    };
    let home = tempfile::tempdir().unwrap();
    // systemd has no way to say which port it was given.
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let http = free.local_addr().unwrap();
    drop(free);
    let mut command = systemd.command();
    command
        .args([
            "--listen",
            &http.to_string(),
            env!("CARGO_BIN_EXE_qtunnel"),
            "serve",
        ])
        .args([
            "--http",
            &http.to_string(),
            "--https",
            "off",
            "--quic",
            "off",
        ])
        .env("HOME", home.path());

    let mut systemd = Process::spawn(command);
    systemd.line("Listening on ").await;
    let visitor = Visitor::new(http, "blog.localhost".into());
    let reply = visitor.get("/").await;

    assert_eq!(reply.header("x-qtunnel-error"), "no_such_tunnel");
    systemd.line(&format!("http   {http}")).await;
}

#[tokio::test]
async fn a_reload_replaces_the_edge_and_the_manager_hears_of_its_new_process() {
    let home = tempfile::tempdir().unwrap();
    let manager = UnixDatagram::bind(home.path().join("notify")).unwrap();
    let mut before = EdgeProcess::start(home.path(), &[]).await;
    before.kill().await;
    let mut command = before.command(&[]);
    command.env("NOTIFY_SOCKET", home.path().join("notify"));
    let mut edge = Process::spawn(command);
    assert_eq!(ready(&manager).await, edge.pid());

    edge.signal(Signal::SIGUSR2);

    let successor = ready(&manager).await;
    assert_ne!(successor, edge.pid());
    edge.line("draining").await;
    let reply = before.visitor("blog").get("/").await;
    assert_eq!(reply.header("x-qtunnel-error"), "no_such_tunnel");
    // It has the first one's output, whose end is waited for.
    kill(successor, Signal::SIGTERM).unwrap();
    assert_eq!(edge.ended().await.code(), Some(0), "{:#?}", edge.seen);
}

/// Wait until the manager is told that a process is ready, and which.
async fn ready(manager: &UnixDatagram) -> Pid {
    let mut told = [0; 1024];
    let length = within("word that the edge is ready", manager.recv(&mut told)).await;
    let told = String::from_utf8_lossy(&told[..length.unwrap()]).into_owned();
    assert!(told.contains("READY=1"), "{told}");
    let pid = told.lines().find_map(|line| line.strip_prefix("MAINPID="));
    Pid::from_raw(pid.expect("a main process").parse().expect("a number"))
}

fn agent(
    home: &std::path::Path,
    quic: SocketAddr,
    upstream: &crate::lab::Server,
) -> qtunnel::AgentConfig {
    qtunnel::AgentConfig {
        server: quic.to_string().parse().expect("an address"),
        trust: qtunnel::Trust::Ca(home.join(".local/state/qtunnel/ca.pem")),
        ..Lab::config("blog", upstream)
    }
}
