//! The program's flags, files, output and exit codes, as a user meets them.

use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use hyper::Request;
use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use crate::lab::peer::Stranger;
use crate::lab::process::Process;
use crate::lab::{EdgeProcess, Server, way, within};

/// A directory in which the program runs, with files for it to find.
struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn file(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        let path = self.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// Run the program to its end, and return its exit code and what it said.
    async fn run(&self, args: &[&str]) -> (i32, String) {
        let mut process = Process::qtunnel(self.path(), args);
        let status = process.ended().await;
        (status.code().unwrap_or(-1), process.seen.join("\n"))
    }

    /// Run the program, which must end with that code and say all of these things.
    async fn fails(&self, args: &[&str], code: i32, says: &[&str]) {
        let (ended, said) = self.run(args).await;
        assert_eq!(ended, code, "{args:?}: {said}");
        for text in says {
            assert!(
                said.contains(text),
                "{args:?} does not say {text:?}: {said}"
            );
        }
    }
}

/// A certificate and its key, in PEM.
fn certificate() -> (String, String) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    (made.cert.pem(), made.signing_key.serialize_pem())
}

#[tokio::test]
async fn a_port_in_use_is_named_with_a_way_out() {
    let home = Home::new();
    let held = (
        TcpListener::bind("127.0.0.1:0").unwrap(),
        UdpSocket::bind("127.0.0.1:0").unwrap(),
    );
    let tcp = held.0.local_addr().unwrap().to_string();
    let udp = held.1.local_addr().unwrap().to_string();

    let args = ["serve", "--http", &tcp, "--https", "off", "--quic", "0"];
    home.fails(&args, 1, &[&tcp, "in use", "--http"]).await;
    let args = ["serve", "--http", "0", "--https", "off", "--quic", &udp];
    home.fails(&args, 1, &[&udp, "(UDP)", "in use"]).await;
}

#[tokio::test]
async fn a_port_that_needs_a_right_is_named_with_how_to_grant_it() {
    let home = Home::new();
    let floor = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
    let floor: u16 = floor
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(1024);
    if floor <= 81 {
        return eprintln!("skipped: every port is free to use here");
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_qtunnel"));
    command
        .args([
            "serve",
            "--http",
            "127.0.0.1:81",
            "--https",
            "off",
            "--quic",
            "0",
        ])
        .current_dir("/")
        .env("HOME", home.path());
    if std::fs::metadata("/proc/self").unwrap().uid() == 0 {
        // As nobody, who must be able to run the program and to keep state.
        let program = home.path().join("qtunnel");
        std::fs::copy(env!("CARGO_BIN_EXE_qtunnel"), &program).unwrap();
        std::fs::set_permissions(home.path(), PermissionsExt::from_mode(0o777)).unwrap();
        let mut as_nobody = Command::new(program);
        as_nobody
            .args(command.as_std().get_args())
            .current_dir("/")
            .env("HOME", home.path())
            .uid(65534)
            .gid(65534);
        command = as_nobody;
    }
    let mut process = Process::spawn(command);

    let status = process.ended().await;

    let said = process.seen.join("\n");
    assert_eq!(status.code(), Some(1), "{said}");
    for text in [
        "127.0.0.1:81",
        "setcap cap_net_bind_service",
        "AmbientCapabilities",
    ] {
        assert!(said.contains(text), "{said}");
    }
}

#[tokio::test]
async fn certificates_and_keys_that_cannot_be_used_are_named() {
    let home = Home::new();
    let ((cert, key), (_, other)) = (certificate(), certificate());
    let cert_file = home.file("cert.pem", cert);
    let key_file = home.file("key.pem", key);
    let other_file = home.file("other.pem", other);
    let empty = home.file("empty.pem", "");
    let broken = home.file(
        "broken.pem",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    );

    for (cert, key, says) in [
        (
            "/nowhere.pem",
            key_file.as_str(),
            ["/nowhere.pem", "No such file"],
        ),
        (&cert_file, "/nowhere.pem", ["/nowhere.pem", "No such file"]),
        (&cert_file, &other_file, [&other_file, "does not belong"]),
        (&empty, &key_file, [&empty, "holds no certificate"]),
        (&cert_file, &empty, [&empty, "holds no private key"]),
        (&cert_file, &cert_file, [&cert_file, "holds no private key"]),
        (&broken, &key_file, [&broken, "cannot use"]),
    ] {
        let ports = ["--http", "0", "--https", "0", "--quic", "0"];
        let mut args = vec!["serve", "--cert", cert, "--key", key];
        args.extend(ports);
        home.fails(&args, 2, &says).await;
    }
    home.fails(&["serve", "--cert", &cert_file], 2, &["--key"])
        .await;
}

#[tokio::test]
async fn wrong_flags_are_usage_errors_that_say_what_would_be_right() {
    let home = Home::new();
    for (args, says) in [
        (&["connect"][..], "qtunnel connect 3000"),
        (&["connect", "99999"], "1 to 65535"),
        (&["connect", "foo:bar"], "\"bar\""),
        (&["connect", "ftp://x"], "http, https"),
        (&["connect", "/no/such/place"], "/no/such/place"),
        (&["connect", "3000", "--server", "a b"], "HOST:PORT"),
        (&["connect", "3000", "--server", "host:0"], "1 to 65535"),
        (&["connect", "3000", "--subdomain", "a_b"], "letters a to z"),
        (&["connect", "3000", "--subdomain", "www"], "reserved"),
        (
            &["connect", "3000", "--pin", "sha256/xx"],
            "32 bytes in base64",
        ),
        (&["connect", "3000", "--host-header", "a b"], "rewrite"),
        (&["connect", "3000", "--upstream-timeout", "x"], "30s"),
        (
            &["connect", "3000", "--token", "a", "--token-file", "b"],
            "--token-file",
        ),
        (&["connect", "3000", "--token-file", "/nowhere"], "/nowhere"),
        (
            &["connect", "3000", "--ca", "/nowhere", "--server", "x"],
            "/nowhere",
        ),
        (&["connect", "3000", "--subdmain", "x"], "--subdomain"),
        (&["serve", "--domain", "a b"], "tunnel.example.com"),
        (&["serve", "--domain", "192.0.2.1"], "tunnel.example.com"),
        (&["serve", "--http", "nope"], "127.0.0.1:8080"),
        (&["serve", "--http", "off", "--https", "off"], "no visitor"),
        (&["serve", "--trusted-proxy", "x"], "10.0.0.0/8"),
        (&["serve", "--token", " "], "empty"),
        (&["serve", "--state-dir", "/proc/nowhere"], "--state-dir"),
        (&["login"], "HOST"),
        (&["login", "example.com"], "--token"),
        (
            &["login", "example.com", "--token", "t", "--ca", "/nowhere"],
            "/nowhere",
        ),
        (&["frobnicate"], "frobnicate"),
    ] {
        home.fails(args, 2, &[says]).await;
    }
}

#[tokio::test]
async fn a_wrong_configuration_file_is_named_with_the_line() {
    let home = Home::new();
    for (content, says) in [
        (
            "upstream = \"3000\"\nbogus = 1",
            &["qtunnel.toml, line 2", "`bogus`", "subdomain"][..],
        ),
        ("server =", &["qtunnel.toml, line 1"]),
        ("server = \"a b\"", &["server", "HOST:PORT"]),
        ("server = \"x\"\npin = \"y\"", &["pin", "sha256/"]),
        ("host-header = \"a b\"", &["host-header", "rewrite"]),
        ("subdomain = \"a_b\"", &["a_b", "letters a to z"]),
    ] {
        home.file("qtunnel.toml", content);
        home.fails(&["connect", "3000"], 2, says).await;
    }
    home.file("qtunnel.toml", "token = \"sesame-open\nserver = 1");
    let (code, said) = home.run(&["connect", "3000"]).await;
    assert_eq!(code, 2);
    assert!(
        !said.contains("sesame"),
        "a broken line is not shown: {said}"
    );
}

#[tokio::test]
async fn a_wrong_pin_shows_what_was_expected_and_what_was_found() {
    let home = Home::new();
    let edge = EdgeProcess::start(home.path(), &["--token", "t"]).await;
    let server = edge.server();
    let wrong = format!("sha256/{}", "A".repeat(43));

    let args = ["connect", "3000", "--server", &server, "--pin", &wrong];
    let (code, said) = home.run(&args).await;

    assert_eq!(code, 2, "{said}");
    assert!(said.contains(&format!("expected {wrong}")), "{said}");
    let found = said.split("found ").nth(1).unwrap();
    let found = found.split(';').next().unwrap();
    assert!(found.starts_with("sha256/") && found != wrong, "{said}");
    // The pin that was found is the right one.
    let args = ["connect", "3000", "--server", &server, "--pin", found];
    home.fails(&args, 3, &["token"]).await;
}

#[tokio::test]
async fn an_edge_that_nobody_vouches_for_is_refused_with_its_pin() {
    let home = Home::new();
    let edge = EdgeProcess::start(home.path(), &[]).await;
    let server = edge.server();
    let stranger = home.file("stranger.pem", certificate().0);

    for ca in [&["--ca", stranger.as_str()][..], &[]] {
        let mut args = vec!["connect", "3000", "--server", &server];
        args.extend(ca);
        home.fails(&args, 2, &["not trusted", "--ca", "--pin", "sha256/"])
            .await;
    }
}

#[tokio::test]
async fn a_refused_token_has_its_own_exit_code_and_says_what_to_do() {
    let home = Home::new();
    let edge = EdgeProcess::start(home.path(), &["--token", "right"]).await;
    let (server, ca) = (edge.server(), edge.ca());
    let ca = ca.to_str().unwrap();
    let args = ["connect", "3000", "--server", &server, "--ca", ca];

    home.fails(
        &args,
        3,
        &[
            "refused the token",
            "none was given",
            &format!("qtunnel login {server} "),
        ],
    )
    .await;
    let wrong = [&args[..], &["--token", "wrong"]].concat();
    home.fails(&wrong, 3, &["refused the token", "compare"])
        .await;
}

#[tokio::test]
async fn a_taken_name_has_its_own_exit_code_and_says_who_has_it() {
    let home = Home::new();
    let edge = EdgeProcess::start(home.path(), &[]).await;
    let (server, ca) = (edge.server(), edge.ca());
    let ca = ca.to_str().unwrap();
    let args = [
        "connect",
        "3000",
        "--server",
        &server,
        "--ca",
        ca,
        "--subdomain",
        "blog",
    ];
    let mut holder = Process::qtunnel(home.path(), args);
    holder.line("connected over").await;
    let id = std::fs::read_to_string(home.path().join(".local/state/qtunnel/agent-id")).unwrap();

    let elsewhere = Home::new();
    elsewhere
        .fails(
            &args,
            4,
            &["\"blog\"", &format!("agent {}", &id[..8]), "--subdomain"],
        )
        .await;

    // The same agent once more: the older one gives way, and says so.
    let mut newer = Process::qtunnel(home.path(), args);
    newer.line("connected over").await;
    assert_eq!(holder.ended().await.code(), Some(4));
    assert!(
        holder.seen.join("\n").contains("taken them over"),
        "{:#?}",
        holder.seen
    );
}

#[tokio::test]
async fn an_edge_that_never_answers_is_code_5_on_request() {
    let home = Home::new();
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let server = way::from_agents(silent.local_addr().unwrap()).to_string();
    let pin = format!("sha256/{}", "A".repeat(43));

    let args = [
        "connect",
        "3000",
        "--server",
        &server,
        "--pin",
        &pin,
        "--exit-on-failure",
    ];
    home.fails(&args, 5, &[&server, "UDP", "firewall", "qtunnel serve"])
        .await;
    let args = [
        "connect",
        "3000",
        "--server",
        "nowhere.invalid",
        "--pin",
        &pin,
        "--exit-on-failure",
    ];
    home.fails(&args, 5, &["nowhere.invalid", "DNS"]).await;
}

#[tokio::test]
async fn a_quic_server_that_is_no_edge_is_told_apart() {
    let home = Home::new();
    let stranger = Stranger::start(&[b"h3"], |connection| async move {
        connection.closed().await;
    });
    let (server, pin) = (
        way::from_agents(stranger.addr).to_string(),
        stranger.pin.to_string(),
    );

    let args = ["connect", "3000", "--server", &server, "--pin", &pin];

    home.fails(&args, 1, &[&server, "not a qtunnel edge"]).await;
}

#[tokio::test]
async fn an_edge_of_another_version_says_which_end_to_upgrade() {
    let home = Home::new();
    for (theirs, advice) in [
        ("qtunnel/2", "upgrade the agent"),
        ("qtunnel/0", "upgrade the edge"),
    ] {
        let edge = Stranger::start(
            &[theirs.as_bytes(), b"qtunnel"],
            move |connection| async move {
                connection.close(426u32.into(), theirs.as_bytes());
            },
        );
        let (server, pin) = (
            way::from_agents(edge.addr).to_string(),
            edge.pin.to_string(),
        );

        let args = ["connect", "3000", "--server", &server, "--pin", &pin];

        home.fails(&args, 1, &[theirs, "qtunnel/1", advice]).await;
    }
}

#[tokio::test]
async fn login_remembers_for_its_owner_only_and_connect_needs_nothing_more() {
    let home = Home::new();
    let edge = EdgeProcess::start(home.path(), &["--token", "sesame"]).await;
    let (server, ca) = (edge.server(), edge.ca());

    let args = [
        "login",
        &server,
        "--token",
        "sesame",
        "--ca",
        ca.to_str().unwrap(),
    ];
    let (code, said) = home.run(&args).await;

    assert_eq!(code, 0, "{said}");
    assert!(!said.contains("sesame"), "{said}");
    let config = home.path().join(".config/qtunnel/config.toml");
    let mode = std::fs::metadata(&config).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let mut agent = Process::qtunnel(home.path(), ["connect", "3000"]);
    agent.line("connected over").await;
}

#[tokio::test]
async fn a_flag_beats_the_environment_and_that_the_project_and_that_the_user() {
    let home = Home::new();
    let edge = EdgeProcess::start(home.path(), &["--token", "right"]).await;
    let server = format!("server = \"localhost:{}\"\n", edge.quic.port());
    let ca = format!("ca = {:?}\n", edge.ca());
    let run = async |token: Option<&str>, env: Option<&str>| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_qtunnel"));
        command
            .args(["connect", "3000"])
            .current_dir(home.path())
            .env("HOME", home.path())
            .env_remove("XDG_CONFIG_HOME")
            .env_remove("XDG_STATE_HOME")
            .env_remove("QTUNNEL_TOKEN");
        if let Some(token) = token {
            command.args(["--token", token]);
        }
        if let Some(token) = env {
            command.env("QTUNNEL_TOKEN", token);
        }
        let mut process = Process::spawn(command);
        within("an answer", async {
            loop {
                let said = process.line("").await;
                if said.contains("connected over") {
                    return true;
                }
                if said.contains("refused the token") {
                    return false;
                }
            }
        })
        .await
    };
    let user = |token: &str| {
        home.file(
            ".config/qtunnel/config.toml",
            format!("{server}{ca}token = {token:?}\n"),
        )
    };
    let project =
        |token: &str| home.file("qtunnel.toml", format!("{server}{ca}token = {token:?}\n"));

    user("right");
    assert!(run(None, None).await, "the user's file is enough");
    project("wrong");
    assert!(
        !run(None, None).await,
        "the project's file beats the user's"
    );
    user("wrong");
    project("right");
    assert!(run(None, None).await, "the project's file beats the user's");
    assert!(
        !run(None, Some("wrong")).await,
        "the environment beats both"
    );
    project("wrong");
    assert!(run(None, Some("right")).await, "the environment beats both");
    assert!(
        !run(Some("wrong"), Some("right")).await,
        "the flag beats all"
    );
    assert!(
        run(Some("right"), Some("wrong")).await,
        "the flag beats all"
    );
}

#[tokio::test]
async fn a_token_is_only_shown_to_the_server_that_it_belongs_to() {
    let home = Home::new();
    let edge = EdgeProcess::start(home.path(), &["--token", "sesame"]).await;
    let (server, ca) = (edge.server(), edge.ca());
    home.file(
        ".config/qtunnel/config.toml",
        "server = \"elsewhere.example\"\ntoken = \"sesame\"\n",
    );

    let args = [
        "connect",
        "3000",
        "--server",
        &server,
        "--ca",
        ca.to_str().unwrap(),
    ];

    home.fails(&args, 3, &["none was given"]).await;
}

#[tokio::test]
async fn a_log_filter_that_is_not_understood_is_named() {
    let home = Home::new();
    let mut command = Command::new(env!("CARGO_BIN_EXE_qtunnel"));
    command
        .args("serve --http 0 --https off --quic 0".split(' '))
        .current_dir(home.path())
        .env("HOME", home.path())
        .env_remove("XDG_STATE_HOME")
        .env("RUST_LOG", "qtunnel=loud");

    let mut edge = Process::spawn(command);

    edge.lines(vec!["RUST_LOG is not understood", "  quic "])
        .await;
}

#[tokio::test]
async fn no_log_shows_a_token_however_talkative() {
    let home = Home::new();
    let token = "sesame-0123456789";
    let token_file = home.file("the-token", token);
    let trace = |args: Vec<String>| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_qtunnel"));
        command
            .args(args)
            .current_dir(home.path())
            .env("HOME", home.path())
            .env_remove("XDG_CONFIG_HOME")
            .env_remove("XDG_STATE_HOME")
            .env("QTUNNEL_TOKEN", token)
            .env("RUST_LOG", "trace");
        Process::spawn(command)
    };
    let args = "serve --http 0 --https off --quic 0"
        .split(' ')
        .map(String::from);
    let mut edge = trace(args.collect());
    let quic = edge.line("  quic ").await;
    let server = quic
        .split_whitespace()
        .nth(1)
        .unwrap()
        .replace("127.0.0.1", way::host());
    let ca = home.path().join(".local/state/qtunnel/ca.pem");
    let args = format!("connect 3000 --server {server} --ca {}", ca.display());
    let mut agent = trace(args.split(' ').map(String::from).collect());
    agent.line("connected over").await;

    agent.signal(Signal::SIGTERM);
    agent.ended().await;
    edge.signal(Signal::SIGTERM);
    edge.ended().await;

    assert!(edge.seen.iter().any(|line| line.contains("TRACE")));
    for line in edge.seen.iter().chain(&agent.seen) {
        assert!(!line.contains(token), "{line}");
    }
    home.fails(
        &[
            "serve",
            "--http",
            "0",
            "--https",
            "0",
            "--quic",
            "0",
            "--token-file",
            &token_file,
            "--domain",
            "a b",
        ],
        2,
        &["not a domain"],
    )
    .await;
}

#[tokio::test]
async fn a_public_edge_makes_a_token_shows_it_once_and_its_line_works() {
    let home = Home::new();
    let args = [
        "serve",
        "--domain",
        "tunnel.test",
        "--http",
        "127.0.0.1:0",
        "--https",
        "127.0.0.1:0",
        "--quic",
        "127.0.0.1:0",
    ];
    let mut first = Process::qtunnel(home.path(), args);
    let line = first.line("on the laptop: ").await;
    first.signal(Signal::SIGTERM);
    first.ended().await;

    let mut second = Process::qtunnel(home.path(), args);
    let quiet = second.line("on the laptop: ").await;

    let token = line
        .split("--token ")
        .nth(1)
        .unwrap()
        .split(' ')
        .next()
        .unwrap();
    assert!(token.starts_with("qt_"), "{line}");
    assert!(line.contains("--pin sha256/"), "{line}");
    assert!(!quiet.contains(token), "{quiet}");
    let file = home.path().join(".local/state/qtunnel/token");
    assert!(quiet.contains(file.to_str().unwrap()), "{quiet}");
    let mode = std::fs::metadata(file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let laptop = Home::new();
    let login: Vec<_> = line
        .split_whitespace()
        .skip_while(|word| *word != "login")
        .collect();
    let (code, said) = laptop.run(&login).await;
    assert_eq!(code, 0, "{said}");
}

/// The agent's lines of JSON, as they come.
async fn event(agent: &mut Process, kind: &str) -> Value {
    let line = agent.line(&format!("\"event\":\"{kind}\"")).await;
    serde_json::from_str(&line).expect("one object on one line")
}

#[tokio::test]
async fn programs_read_one_object_per_line() {
    let home = Home::new();
    let mut edge = EdgeProcess::start(home.path(), &[]).await;
    let (server, ca) = (edge.server(), edge.ca());
    let upstream = Server::echo().await;
    let mut agent = Process::qtunnel(
        home.path(),
        [
            "connect",
            &upstream.addr.to_string(),
            "--server",
            &server,
            "--ca",
            ca.to_str().unwrap(),
            "--subdomain",
            "blog",
            "--json",
        ],
    );

    let ready = event(&mut agent, "ready").await;
    assert_eq!(
        ready["url"],
        format!("http://blog.localhost:{}", edge.http.port())
    );
    assert_eq!(ready["transport"], "quic");
    edge.visitor("blog").post("/a?b", "12345").await;
    let request = event(&mut agent, "request").await;
    for (key, value) in [
        ("method", Value::from("POST")),
        ("path", "/a?b".into()),
        ("status", 200.into()),
        ("bytes_in", 5.into()),
        ("bytes_out", 5.into()),
        ("problem", Value::Null),
    ] {
        assert_eq!(request[key], value, "{request}");
    }
    assert!(
        request["duration_ms"].is_number() && request["time"].is_string(),
        "{request}"
    );
    let mut slow = edge.visitor("blog").connect().await;
    let half = "POST / HTTP/1.1\r\nhost: blog.localhost\r\ncontent-length: 8\r\n\r\nhalf";
    slow.write_all(half.as_bytes()).await.unwrap();
    assert!(
        within("the answer", slow.read(&mut [0; 512]))
            .await
            .unwrap()
            > 0
    );
    edge.process.signal(Signal::SIGTERM);
    let notice = event(&mut agent, "notice").await;
    assert!(notice["text"].is_string(), "{notice}");
    slow.write_all(b"full").await.unwrap();
    let reconnecting = event(&mut agent, "reconnecting").await;
    assert!(reconnecting["reason"].is_string(), "{reconnecting}");
    assert_eq!(reconnecting["wait_ms"], 0);
    edge.process.ended().await;
    edge.restart().await;
    event(&mut agent, "ready").await;
    agent.signal(Signal::SIGINT);
    let stopped = event(&mut agent, "stopped").await;
    assert_eq!(stopped["code"], 0, "{stopped}");
    assert_eq!(agent.ended().await.code(), Some(0));
}

#[tokio::test]
async fn a_program_reads_why_the_agent_ended() {
    let home = Home::new();
    let edge = EdgeProcess::start(home.path(), &["--token", "right"]).await;
    let (server, ca) = (edge.server(), edge.ca());
    let mut agent = Process::qtunnel(
        home.path(),
        [
            "connect",
            "3000",
            "--server",
            &server,
            "--ca",
            ca.to_str().unwrap(),
            "--json",
        ],
    );

    let stopped = event(&mut agent, "stopped").await;

    assert_eq!(stopped["code"], 3, "{stopped}");
    assert!(
        stopped["error"].as_str().unwrap().contains("token"),
        "{stopped}"
    );
    assert_eq!(agent.ended().await.code(), Some(3));
}

#[tokio::test]
async fn the_log_is_one_safe_line_for_each_request() {
    let home = Home::new();
    let edge = EdgeProcess::start(home.path(), &[]).await;
    let (server, ca) = (edge.server(), edge.ca());
    let upstream = Server::echo().await;
    let mut agent = Process::qtunnel(
        home.path(),
        [
            "connect",
            &upstream.addr.to_string(),
            "--server",
            &server,
            "--ca",
            ca.to_str().unwrap(),
            "--subdomain",
            "blog",
        ],
    );
    agent.line("connected over").await;
    let visitor = edge.visitor("blog");

    visitor.post("/form", "12345").await;
    let line = agent.line("/form").await;

    let words: Vec<_> = line.split_whitespace().collect();
    assert_eq!(words[1..4], ["POST", "/form", "200"], "{line}");
    let [hours, minutes, seconds] = words[0].split(':').collect::<Vec<_>>()[..] else {
        panic!("{line}");
    };
    assert!(
        [hours, minutes, seconds].iter().all(|part| part.len() == 2),
        "{line}"
    );
    assert!(line.contains(" ms  5 B (in 5 B)"), "{line}");
    assert!(!line.contains('\x1b'), "no colours in a pipe: {line}");

    // A right-to-left override, a C1 control sequence introducer and a zero-width space in UTF-8.
    let treacherous = "/x\u{202e}gpj.exe\u{9b}31m\u{200b}end";
    let request =
        format!("GET {treacherous} HTTP/1.1\r\nhost: blog.localhost\r\nconnection: close\r\n\r\n");
    let answer = String::from_utf8_lossy(&visitor.raw(request).await).into_owned();
    if answer.starts_with("HTTP/1.1 200") {
        let line = agent.line("end").await;
        assert!(
            line.contains("x\\u{202e}gpj.exe\\u{9b}31m\\u{200b}end"),
            "{line}"
        );
    } else {
        assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    }
    let escape = visitor
        .raw("GET /\x1b[2J HTTP/1.1\r\nhost: blog.localhost\r\n\r\n")
        .await;
    assert!(
        escape.starts_with(b"HTTP/1.1 400"),
        "{}",
        String::from_utf8_lossy(&escape)
    );
    visitor.send(Request::get("/last")).await;
    agent.line("/last").await;
    for line in &agent.seen {
        let unsafe_ = |c: char| c.is_control() || matches!(c, '\u{200b}' | '\u{202e}');
        assert!(!line.contains(unsafe_), "{line:?}");
    }
}
