//! gRPC with its own client and server: over HTTPS to the edge, and in clear text to the upstream.

use crate::lab::process::{Process, succeed};
use crate::lab::tools::{self, Tool};
use crate::lab::{Lab, Running};
use qtunnel::{Address, Upstream};
use tokio::process::Command;

#[tokio::test]
async fn a_grpc_call_is_answered() {
    all_is_well("unary").await;
}

#[tokio::test]
async fn a_grpc_client_streams() {
    all_is_well("client_streaming").await;
}

#[tokio::test]
async fn a_grpc_server_streams() {
    all_is_well("server_streaming").await;
}

#[tokio::test]
async fn both_ends_of_a_grpc_call_take_turns() {
    all_is_well("bidirectional_streaming").await;
}

#[tokio::test]
async fn grpc_messages_of_4_mib_pass_both_ways() {
    all_is_well("large_messages").await;
}

#[tokio::test]
async fn grpc_metadata_passes_in_front_and_behind() {
    all_is_well("metadata").await;
}

#[tokio::test]
async fn grpc_errors_keep_their_code_and_details() {
    all_is_well("errors").await;
}

#[tokio::test]
async fn a_grpc_deadline_is_known_to_both_ends() {
    let Some(mut grpc) = Grpc::start().await else {
        return;
    };

    let mut client = Process::spawn(grpc.client("deadline"));

    client.line("all well").await;
    grpc.server.line("the hanging call has ended").await;
}

#[tokio::test]
async fn a_grpc_call_that_is_cancelled_ends_at_the_server() {
    let Some(mut grpc) = Grpc::start().await else {
        return;
    };

    let mut client = Process::spawn(grpc.client("cancellation"));

    client.line("all well").await;
    grpc.server.line("the hanging call has ended").await;
}

async fn all_is_well(scenario: &str) {
    let Some(grpc) = Grpc::start().await else {
        return;
    };

    let said = succeed(grpc.client(scenario)).await;

    assert_eq!(said, "all well\n");
}

/// A gRPC server behind a tunnel named `grpc`.
struct Grpc {
    lab: Lab,
    python: Tool,
    server: Process,
    _agent: Running,
}

impl Grpc {
    async fn start() -> Option<Self> {
        let python = tools::python()?;
        let lab = Lab::start().await;
        let mut server = Process::spawn(python.script("grpc_server.py"));
        let upstream: Address = format!("h2c://127.0.0.1:{}", server.port().await)
            .parse()
            .unwrap();
        let agent = lab.agent("grpc", Upstream::from(upstream)).await;
        Some(Self {
            lab,
            python,
            server,
            _agent: agent,
        })
    }

    fn client(&self, scenario: &str) -> Command {
        let mut command = self.python.script("grpc_client.py");
        command
            .arg(self.lab.https.port().to_string())
            .arg("grpc.localhost")
            .arg(self.lab.ca())
            .arg(scenario);
        command
    }
}
