//! `qtunnel check`: each way in which the way to an edge can be wrong is named.

use std::net::SocketAddr;

use serde_json::Value;
use tempfile::TempDir;
use tokio::net::{TcpListener, UdpSocket};

use crate::lab::process::{Finished, qtunnel, run};
use crate::lab::{Lab, back::Back, way};

#[tokio::test]
async fn a_way_with_nothing_wrong_passes() {
    let lab = Lab::start().await;

    let check = Check::of(&lab).run(&[]).await;

    assert_eq!(check.code(), 0, "{check:?}");
    for part in ["tcp", "udp", "udp-full-size", "websocket", "certificate"] {
        assert_eq!(check.verdict(part), "pass", "{check:?}");
    }
    for part in ["proxy", "token"] {
        assert_eq!(check.verdict(part), "skip", "{check:?}");
    }
    let end = check.end();
    assert_eq!(end["transport"], "quic", "{end}");
    assert!(end["rtt_ms"].is_number() && end["mtu"].is_number(), "{end}");
}

#[tokio::test]
async fn people_get_a_table_that_says_what_to_do() {
    let lab = Lab::with(|config| config.quic = None).await;
    let (_silent, addr) = silent().await;
    let check = Check::of(&lab).with_port(addr.port());

    let finished = check.finish(&["check"]).await;

    let said = String::from_utf8(finished.stdout).unwrap();
    assert_eq!(finished.status.code(), Some(0), "{said}");
    let line = |start: &str| {
        let found = said
            .lines()
            .find(|line| line.trim_start().starts_with(start));
        found
            .unwrap_or_else(|| panic!("no {start:?} in {said}"))
            .to_owned()
    };
    assert!(line("UDP ").contains("FAIL  no answer within"), "{said}");
    assert!(line("→ open UDP port").contains("until then"), "{said}");
    assert!(line("WebSocket").contains("PASS"), "{said}");
    assert!(
        line("agents connect").contains("websocket (round trip"),
        "{said}"
    );
}

#[tokio::test]
async fn a_wrong_token_and_a_missing_one_end_with_code_3() {
    let secret = qtunnel::proto::Secret::new("right".to_owned());
    let lab = Lab::with(|config| config.tokens = Some(vec![secret])).await;
    for (flags, detail) in [
        (&["--token", "wrong"][..], "refused"),
        (&[], "none was given"),
    ] {
        let check = Check::of(&lab).run(flags).await;

        assert_eq!((check.code(), check.verdict("token")), (3, "fail"));
        assert!(check.detail("token").contains(detail), "{check:?}");
        assert_eq!(check.verdict("certificate"), "pass", "{check:?}");
    }
    let check = Check::of(&lab).run(&["--token", "right"]).await;
    assert_eq!((check.code(), check.verdict("token")), (0, "pass"));
}

#[tokio::test]
async fn a_wrong_pin_is_named_beside_the_one_that_was_found() {
    let lab = Lab::start().await;
    let other = Lab::start().await;
    let mut check = Check::of(&lab);
    check.pin = other.pin().to_string();

    let check = check.run(&[]).await;

    assert_eq!((check.code(), check.verdict("certificate")), (2, "fail"));
    let detail = check.detail("certificate");
    for pin in [lab.pin(), other.pin()] {
        assert!(detail.contains(&pin.to_string()), "{detail}");
    }
    assert_eq!(check.verdict("token"), "skip");
    assert_eq!(check.verdict("udp"), "pass", "{check:?}");
}

#[tokio::test]
async fn a_closed_port_and_an_unknown_host_are_told_apart() {
    let lab = Lab::start().await;
    let closed = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        way::from_agents(listener.local_addr().unwrap())
    };
    let url = format!("wss://{closed}");
    let here = ["--websocket-url", &url];

    let check = Check::of(&lab).with_port(closed.port()).run(&here).await;

    assert_eq!(check.code(), 5, "{check:?}");
    for part in ["tcp", "udp", "websocket"] {
        assert_eq!(check.verdict(part), "fail", "{check:?}");
    }
    assert!(
        check.detail("tcp").contains(&closed.to_string()),
        "{check:?}"
    );
    assert!(check.detail("udp").contains("refused"), "{check:?}");
    assert_eq!(check.verdict("certificate"), "skip", "{check:?}");

    let mut check = Check::of(&lab);
    check.server = "no-such-host.invalid".into();
    let check = check
        .run(&["--websocket-url", "wss://no-such-host.invalid"])
        .await;

    assert_eq!((check.code(), check.verdict("dns")), (5, "fail"));
    assert!(
        check.detail("dns").contains("no-such-host.invalid"),
        "{check:?}"
    );
    assert_eq!(check.verdict("udp"), "skip", "{check:?}");
}

#[tokio::test]
async fn a_proxy_is_passed_or_named() {
    let lab = Lab::start().await;
    let down = ["--transport", "websocket", "--proxy", "http://127.0.0.1:9"];

    let check = Check::of(&lab).run(&down).await;

    assert_eq!((check.code(), check.verdict("proxy")), (5, "fail"));
    assert!(check.detail("proxy").contains("127.0.0.1:9"), "{check:?}");
    assert_eq!(
        (check.verdict("tcp"), check.verdict("udp")),
        ("skip", "skip")
    );

    let Some(squid) = Back::squid(None).await else {
        return;
    };
    let proxy = format!("http://{}", squid.addr);
    let up = ["--transport", "websocket", "--proxy", &proxy];
    let check = Check::of(&lab).run(&up).await;
    assert_eq!((check.code(), check.verdict("proxy")), (0, "pass"));
    assert_eq!(check.end()["transport"], "websocket");
}

#[tokio::test]
async fn a_transport_that_is_not_used_is_not_judged() {
    let lab = Lab::start().await;

    let check = Check::of(&lab).run(&["--transport", "quic"]).await;

    assert_eq!((check.code(), check.verdict("websocket")), (0, "skip"));
    assert_eq!(check.verdict("udp"), "pass");
}

/// A port for UDP that never answers.
async fn silent() -> (UdpSocket, SocketAddr) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let addr = socket.local_addr().unwrap();
    (socket, addr)
}

/// What is to be checked, and from where.
struct Check {
    home: TempDir,
    server: String,
    websocket: String,
    pin: String,
}

impl Check {
    fn of(lab: &Lab) -> Self {
        Self {
            home: tempfile::tempdir().unwrap(),
            server: format!("{}:{}", way::host(), lab.quic.port()),
            websocket: lab.websocket().to_string(),
            pin: lab.pin().to_string(),
        }
    }

    fn with_port(mut self, port: u16) -> Self {
        self.server = format!("{}:{port}", way::host());
        self
    }

    async fn run(&self, flags: &[&str]) -> Checked {
        let finished = self.finish(&[&["check", "--json"], flags].concat()).await;
        let lines = std::str::from_utf8(&finished.stdout).unwrap().lines();
        let lines = lines
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        Checked { finished, lines }
    }

    async fn finish(&self, arguments: &[&str]) -> Finished {
        let mut command = qtunnel(self.home.path(), arguments);
        command.args(["--server", &self.server, "--pin", &self.pin]);
        if !arguments.contains(&"--websocket-url") {
            command.args(["--websocket-url", &self.websocket]);
        }
        run(command).await
    }
}

/// What a check has said.
#[derive(Debug)]
struct Checked {
    finished: Finished,
    lines: Vec<Value>,
}

impl Checked {
    fn code(&self) -> i32 {
        let code = self.finished.status.code().expect("an exit code");
        assert_eq!(self.end()["code"], code, "{self:?}");
        code
    }

    fn verdict(&self, part: &str) -> &str {
        self.part(part)["verdict"].as_str().expect("a verdict")
    }

    fn detail(&self, part: &str) -> &str {
        self.part(part)["detail"].as_str().expect("a detail")
    }

    fn part(&self, part: &str) -> &Value {
        let found = self.lines.iter().find(|line| line["check"] == part);
        found.unwrap_or_else(|| panic!("no {part} in {self:#?}"))
    }

    fn end(&self) -> &Value {
        self.lines.last().expect("a last line")
    }
}
