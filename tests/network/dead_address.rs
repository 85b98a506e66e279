//! An upstream whose name has two addresses, of which one is dead: packets to it vanish.

use std::time::{Duration, Instant};

use crate::lab::process::Process;
use crate::lab::{Visitor, eventually};
use crate::space::{self, Space};
use crate::upstream::{SMALL, Upstream};

#[test]
fn a_dead_ipv6_address_of_an_upstream_is_passed_over() {
    if !space::may_be_made() {
        return;
    }
    let space = Space::make("dead");
    // Whoever has that hardware address is not there.
    space.ip("link add v0 type veth peer name v1");
    space.ip("link set v0 up");
    space.ip("link set v1 up");
    space.ip("-6 addr add 2001:db8::1/64 dev v0 nodad");
    space.ip("neigh add 2001:db8::99 lladdr 02:00:00:00:00:99 dev v0");
    let upstream = Upstream::start(&space);
    let home = tempfile::tempdir().expect("a temporary directory");
    let hosts = home.path().join("hosts");
    let names = "127.0.0.1 localhost\n2001:db8::99 app.test\n127.0.0.1 app.test\n";
    std::fs::write(&hosts, names).expect("a writable directory");
    let qtunnel = |arguments: &[&str]| {
        let mut command = space.command("sh");
        // `ip netns exec` has mounts of its own, so this file is nobody else's.
        command.args(["-c", "mount --bind \"$0\" /etc/hosts && exec \"$@\""]);
        command
            .arg(&hosts)
            .arg(env!("CARGO_BIN_EXE_qtunnel"))
            .args(arguments);
        command
            .env("HOME", home.path())
            .env_remove("XDG_STATE_HOME")
            .env_remove("XDG_CONFIG_HOME");
        command.current_dir(home.path());
        Process::spawn(command.into())
    };

    space.entrance().block_on(async || {
        let here = [
            "--http",
            "127.0.0.1:8080",
            "--https",
            "127.0.0.1:8443",
            "--quic",
            "127.0.0.1:8443",
        ];
        let mut edge = qtunnel(&[&["serve"][..], &here].concat());
        edge.line("8443").await;
        let ca = home.path().join(".local/state/qtunnel/ca.pem");
        eventually("the edge's authority", || async { ca.is_file() }).await;
        let address = format!("http://app.test:{}", upstream.port);
        let ca = ca.display().to_string();
        let to_edge = [
            "--server",
            "localhost:8443",
            "--ca",
            &ca,
            "--subdomain",
            "net",
            "--json",
        ];
        let mut agent = qtunnel(&[&["connect", &address][..], &to_edge].concat());
        agent.line("\"ready\"").await;
        let visitor = Visitor::new(([127, 0, 0, 1], 8080).into(), "net.localhost".into());

        for _ in 0..2 {
            let asked = Instant::now();
            let reply = visitor.get("/").await;

            assert_eq!((reply.status, reply.body.len()), (200, SMALL));
            assert!(
                asked.elapsed() < Duration::from_secs(2),
                "{:?}",
                asked.elapsed()
            );
        }
    });
}
