//! gRPC with its own client and server: over HTTPS to the edge, and in clear text to the upstream.

use crate::lab::process::{Process, succeed};
use crate::lab::tools::{self, Tool};
use crate::lab::{Lab, Running};
use qtunnel::{Address, Carrier, Upstream};
use tokio::process::Command;

on_each_carrier!(a_grpc_call_is_answered);
async fn a_grpc_call_is_answered(carrier: Carrier) {
    all_is_well(carrier, "unary").await;
}

on_each_carrier!(a_grpc_client_streams);
async fn a_grpc_client_streams(carrier: Carrier) {
    all_is_well(carrier, "client_streaming").await;
}

on_each_carrier!(a_grpc_server_streams);
async fn a_grpc_server_streams(carrier: Carrier) {
    all_is_well(carrier, "server_streaming").await;
}

on_each_carrier!(both_ends_of_a_grpc_call_take_turns);
async fn both_ends_of_a_grpc_call_take_turns(carrier: Carrier) {
    all_is_well(carrier, "bidirectional_streaming").await;
}

on_each_carrier!(grpc_messages_of_4_mib_pass_both_ways);
async fn grpc_messages_of_4_mib_pass_both_ways(carrier: Carrier) {
    all_is_well(carrier, "large_messages").await;
}

on_each_carrier!(grpc_metadata_passes_in_front_and_behind);
async fn grpc_metadata_passes_in_front_and_behind(carrier: Carrier) {
    all_is_well(carrier, "metadata").await;
}

on_each_carrier!(grpc_errors_keep_their_code_and_details);
async fn grpc_errors_keep_their_code_and_details(carrier: Carrier) {
    all_is_well(carrier, "errors").await;
}

on_each_carrier!(a_grpc_deadline_is_known_to_both_ends);
async fn a_grpc_deadline_is_known_to_both_ends(carrier: Carrier) {
    let Some(mut grpc) = Grpc::start(carrier).await else {
        return;
    };

    let mut client = Process::spawn(grpc.client("deadline"));

    client.line("all well").await;
    grpc.server.line("the hanging call has ended").await;
}

on_each_carrier!(a_grpc_call_that_is_cancelled_ends_at_the_server);
async fn a_grpc_call_that_is_cancelled_ends_at_the_server(carrier: Carrier) {
    let Some(mut grpc) = Grpc::start(carrier).await else {
        return;
    };

    let mut client = Process::spawn(grpc.client("cancellation"));

    client.line("all well").await;
    grpc.server.line("the hanging call has ended").await;
}

async fn all_is_well(carrier: Carrier, scenario: &str) {
    let Some(grpc) = Grpc::start(carrier).await else {
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
    async fn start(carrier: Carrier) -> Option<Self> {
        let python = tools::python()?;
        let lab = Lab::start().await.over(carrier);
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
