//! The examples run, and do what they say.

use std::path::Path;

use tokio::process::Command;

use crate::lab::Visitor;
use crate::lab::process::Process;

#[tokio::test]
async fn the_loopback_trio_answers_a_visit_and_ends() {
    let mut example = run("loopback");

    example.line("published at http://hello.localhost:").await;
    example.line("HTTP/1.1 200").await;
    example.line("hello from the upstream").await;
    assert_eq!(example.ended().await.code(), Some(0), "{:#?}", example.seen);
}

#[tokio::test]
async fn an_axum_app_is_published_without_a_port_of_its_own() {
    let mut example = run("axum");
    let line = example.line("open http://greeter.localhost:").await;
    let url: hyper::Uri = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    let addr = ([127, 0, 0, 1], url.port_u16().unwrap()).into();

    let reply = Visitor::new(addr, url.host().unwrap().to_owned())
        .get("/greet/you")
        .await;

    assert_eq!((reply.status, reply.text()), (200, "hello, you\n"));
    example.signal(nix::sys::signal::Signal::SIGINT);
    assert_eq!(example.ended().await.code(), Some(0), "{:#?}", example.seen);
}

/// Start an example. All are built first, for when only these tests run: that may take longer than a
/// test is patient.
fn run(name: &str) -> Process {
    let release = (!cfg!(debug_assertions)).then_some("--release");
    let built = std::process::Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--examples"])
        .args(release)
        .status()
        .expect("cargo runs");
    assert!(built.success());
    let examples = Path::new(env!("CARGO_BIN_EXE_qtunnel")).with_file_name("examples");
    Process::spawn(Command::new(examples.join(name)))
}
