//! Handovers that do not come about.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;

use nix::sys::signal::Signal;
use socket2::{Domain, SockAddr, Socket, Type};

use super::{Download, upstream};
use crate::lab::{EdgeProcess, Running, eventually, within};

#[tokio::test]
async fn where_no_edge_runs_nothing_is_taken_over() {
    let home = tempfile::tempdir().unwrap();
    let mut edge = EdgeProcess::start(home.path(), &[]).await;
    let elsewhere = home.path().join("elsewhere");
    let elsewhere = elsewhere.to_str().expect("text");

    let mut wrong = edge.successor(&["--state-dir", elsewhere]);
    edge.kill().await;
    let mut late = edge.successor(&[]);

    for process in [&mut wrong, &mut late] {
        process.line("no edge runs with this state directory").await;
        assert_eq!(process.ended().await.code(), Some(1), "{:#?}", process.seen);
    }
}

#[tokio::test]
async fn a_successor_that_cannot_listen_leaves_everything_as_it_was() {
    let home = tempfile::tempdir().unwrap();
    let mut edge = EdgeProcess::start(home.path(), &[]).await;
    let upstream = upstream().await;
    let _agent = Running::start(edge.agent_config("blog", &upstream)).await;
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let in_use = other.local_addr().unwrap().to_string();

    let mut successor = edge.successor_at(&in_use, &edge.quic.to_string());

    successor.line("is in use by another process").await;
    assert_eq!(successor.ended().await.code(), Some(1));
    edge.process.line("nothing was handed over").await;
    assert_eq!(edge.visitor("blog").get("/").await.text(), "here");
    edge.take_over().await;
    assert_eq!(edge.visitor("blog").get("/").await.text(), "here");
}

#[tokio::test]
async fn a_successor_that_dies_before_it_is_ready_leaves_everything_as_it_was() {
    let home = tempfile::tempdir().unwrap();
    let mut edge = EdgeProcess::start(home.path(), &[]).await;
    let upstream = upstream().await;
    let _agent = Running::start(edge.agent_config("blog", &upstream)).await;

    for said in [&QUESTION[..], b"\xff\xff\xff", b"", &READY] {
        let mut asking = ask(&edge);
        asking.write_all(said).unwrap();
        if said == QUESTION {
            let offered = asking.read(&mut [0; 4096]).unwrap();
            assert!(offered > 0);
        }
        drop(asking);
        edge.process.line("nothing was handed over").await;
        assert_eq!(edge.visitor("blog").get("/").await.text(), "here");
    }

    edge.take_over().await;
    assert_eq!(edge.visitor("blog").get("/").await.text(), "here");
}

#[tokio::test]
async fn a_process_of_another_version_is_told_so() {
    let home = tempfile::tempdir().unwrap();
    let edge = EdgeProcess::start(home.path(), &[]).await;

    let mut asking = ask(&edge);
    asking.write_all(&[0, 99]).unwrap();

    let mut answer = [0; 4096];
    let length = asking.read(&mut answer).unwrap();
    let answer = String::from_utf8_lossy(&answer[..length]).into_owned();
    assert!(answer.contains("version 2, not 99"), "{answer}");
}

#[tokio::test]
async fn only_the_edges_own_user_comes_to_its_door() {
    let home = tempfile::tempdir().unwrap();
    let edge = EdgeProcess::start(home.path(), &[]).await;

    let mode = edge.door().metadata().unwrap().permissions().mode();

    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test]
async fn a_successor_keeps_the_address_where_agents_look_for_it() {
    let home = tempfile::tempdir().unwrap();
    let edge = EdgeProcess::start(home.path(), &[]).await;

    let mut successor = edge.successor_at("off", "127.0.0.1:1");

    successor.line("a successor keeps that address").await;
    assert_eq!(successor.ended().await.code(), Some(1));
}

#[tokio::test]
async fn an_edge_can_be_started_anew_when_the_successor_is_killed_while_the_first_drains() {
    let home = tempfile::tempdir().unwrap();
    let mut edge = EdgeProcess::start(home.path(), &[]).await;
    let upstream = upstream().await;
    let _agent = Running::start(edge.agent_config("blog", &upstream)).await;
    let _unfinished = Download::begin(&edge.visitor("blog")).await;
    let mut first = edge.take_over().await;

    edge.process.signal(Signal::SIGKILL);
    edge.process.ended().await;

    first.line("the successor is gone").await;
    assert_eq!(first.ended().await.code(), Some(0), "{:#?}", first.seen);
    edge.restart().await;
    eventually("the tunnel's return", || async {
        edge.visitor("blog").get("/").await.status == 200
    })
    .await;
}

#[tokio::test]
async fn a_second_edge_with_the_same_state_leaves_the_firsts_door_alone() {
    let home = tempfile::tempdir().unwrap();
    let mut edge = EdgeProcess::start(home.path(), &[]).await;

    let beside = EdgeProcess::start(home.path(), &[]).await;

    let said = &beside.process.seen;
    let says = said.iter().any(|line| line.contains("another edge runs"));
    assert!(says, "{said:#?}");
    let mut old = edge.take_over().await;
    assert_eq!(
        within("the old edge's end", old.ended()).await.code(),
        Some(0)
    );
}

/// Knock at the door of a running edge, by hand.
fn ask(edge: &EdgeProcess) -> Socket {
    let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None).unwrap();
    socket
        .connect(&SockAddr::unix(edge.door()).unwrap())
        .unwrap();
    socket
}

/// `Question { version: 2 }`
const QUESTION: [u8; 2] = [0, 2];

/// `Ready`, which nobody has asked for.
const READY: [u8; 1] = [3];
