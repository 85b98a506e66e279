//! What the kernel does for the TCP connections of ours.

use crate::SHORT_PATH;
use crate::ground::Ground;
use crate::lab::tools;
use crate::space;

#[test]
fn both_ends_of_a_websocket_have_bbr() {
    if !space::may_be_made() {
        return;
    }
    Ground::run(SHORT_PATH, async |ground| {
        let mut agent = ground.agent("websocket");
        agent.ready_on("websocket").await;

        // The kernel may have loaded it for them.
        let offered = "-n net.ipv4.tcp_available_congestion_control";
        let offered = ground.agents_space.run("sysctl", offered);
        if !offered.split_whitespace().any(|name| name == "bbr") {
            return tools::skip("the kernel has no BBR");
        }
        let sent = "-Htin state established dport = :8443";
        let accepted = "-Htin state established sport = :8443";
        for sockets in [
            ground.agents_space.run("ss", sent),
            ground.edges_space.run("ss", accepted),
        ] {
            assert!(sockets.contains(" bbr "), "{sockets}");
        }
    });
}
