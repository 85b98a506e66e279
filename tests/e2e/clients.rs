//! Clients that people use: curl, nghttp2's, and Python's `websockets`.

use std::path::Path;

use http_body_util::{BodyExt, Full};
use hyper::Response;
use qtunnel::{Address, Carrier, Upstream};
use tokio::process::Command;

use crate::lab::process::{Process, run, succeed};
use crate::lab::tools::{self, Tool};
use crate::lab::{Lab, Server};

on_each_carrier!(curl_needs_no_setup_over_any_version_of_http);
async fn curl_needs_no_setup_over_any_version_of_http(carrier: Carrier) {
    let Some(curl) = tools::program("curl") else {
        return;
    };
    let lab = Lab::start().await.over(carrier);
    let upstream = Server::echo().await;
    let _agent = lab.agent("blog", &upstream).await;
    let http = format!("http://blog.localhost:{}/a?b", lab.http.port());
    let https = format!("https://blog.localhost:{}/a?b", lab.https.port());

    for (version, url, spoken) in [
        ("--http1.0", &http, "1"),
        ("--http1.1", &http, "1.1"),
        ("--http1.1", &https, "1.1"),
        ("--http2", &https, "2"),
    ] {
        let mut command = fetch(&curl, &lab);
        command
            .args([version, url, "--data", "hello"])
            .args(["--write-out", " %{http_version} %{response_code}"]);
        let said = succeed(command).await;

        assert_eq!(said, format!("hello {spoken} 200"), "{version} {url}");
    }
}

on_each_carrier!(curl_waits_with_its_upload_until_the_upstream_wants_it);
async fn curl_waits_with_its_upload_until_the_upstream_wants_it(carrier: Carrier) {
    let Some(curl) = tools::program("curl") else {
        return;
    };
    let lab = Lab::start().await.over(carrier);
    let upstream = Server::http(|request| async {
        let body = request.into_body().collect().await.expect("a whole body");
        Response::new(Full::new(body.to_bytes()))
    })
    .await;
    let _agent = lab.agent("blog", &upstream).await;
    let directory = tempfile::tempdir().unwrap();
    let sent: Vec<u8> = (0..3_000_000u32).map(|at| (at % 251) as u8).collect();
    std::fs::write(directory.path().join("sent"), &sent).unwrap();

    for (version, scheme, port) in [
        ("--http1.1", "http", lab.http.port()),
        ("--http2", "https", lab.https.port()),
    ] {
        let mut command = fetch(&curl, &lab);
        command
            .current_dir(directory.path())
            .args([version, "--verbose", "--upload-file", "sent"])
            .args([
                "--header",
                "Expect: 100-continue",
                "--expect100-timeout",
                "60",
            ])
            .args(["--output", "received"])
            .arg(format!("{scheme}://blog.localhost:{port}/"));
        let finished = run(command).await;

        assert!(finished.status.success(), "{finished:#?}");
        let continued = finished.stderr.contains("HTTP/1.1 100 Continue");
        assert!(continued || scheme == "https", "{}", finished.stderr);
        let received = std::fs::read(directory.path().join("received")).unwrap();
        assert!(received == sent, "{} bytes came back", received.len());
    }
}

on_each_carrier!(curl_gets_pages_parts_and_nothing_hidden_of_a_directory);
async fn curl_gets_pages_parts_and_nothing_hidden_of_a_directory(carrier: Carrier) {
    let Some(curl) = tools::program("curl") else {
        return;
    };
    let lab = Lab::start().await.over(carrier);
    let directory = tempfile::tempdir().unwrap();
    let site = directory.path().join("site");
    for (name, content) in [
        ("secret", "outside"),
        ("site/index.html", "<p>the index"),
        ("site/a b/index.html", "<p>a deeper index"),
        ("site/ten", "0123456789"),
        ("site/.env", "hidden"),
        ("site/.git/config", "hidden"),
    ] {
        let path = directory.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    let _agent = lab.agent("site", directory_upstream(&site)).await;
    let get = async |path: &str, more: &[&str]| {
        let mut command = fetch(&curl, &lab);
        command
            .args([
                "--http2",
                "--path-as-is",
                "--write-out",
                " %{response_code}",
            ])
            .args(more)
            .arg(format!("https://site.localhost:{}{path}", lab.https.port()));
        succeed(command).await
    };

    assert_eq!(get("/", &[]).await, "<p>the index 200");
    assert_eq!(get("/a%20b/", &[]).await, "<p>a deeper index 200");
    assert_eq!(get("/ten", &["--range", "3-5"]).await, "345 206");
    assert_eq!(get("/ten", &["--range", "-2"]).await, "89 206");
    assert!(get("/ten", &["--range", "99-"]).await.ends_with(" 416"));
    let stamp = directory.path().join("stamp").display().to_string();
    assert_eq!(
        get("/ten", &["--remote-time", "--output", &stamp]).await,
        " 200"
    );
    assert_eq!(get("/ten", &["--time-cond", &stamp]).await, " 304");
    for path in [
        "/.env",
        "/.git/config",
        "/%2egit/config",
        "/../secret",
        "/..%2fsecret",
        "/a%20b/../../secret",
        "/%2e%2e/secret",
        "/nothing",
    ] {
        let said = get(path, &[]).await;
        assert!(said.ends_with(" 404"), "{path}: {said}");
        assert!(
            !said.contains("hidden") && !said.contains("outside"),
            "{path}"
        );
    }
    let said = get("/ten", &["--request", "DELETE"]).await;
    assert!(said.ends_with(" 405"), "{said}");
}

on_each_carrier!(every_request_of_h2load_succeeds);
async fn every_request_of_h2load_succeeds(carrier: Carrier) {
    let Some(h2load) = tools::program("h2load") else {
        return;
    };
    let lab = Lab::start().await.over(carrier);
    let upstream = Server::text("hello").await;
    let _agent = lab.agent("blog", &upstream).await;

    for version in ["--npn-list=h2", "--h1"] {
        let mut command = h2load.command();
        command
            .args(["-n", "2000", "-c", "10", "-m", "20", version])
            .arg(format!("--connect-to={}", lab.https))
            .arg(format!("https://blog.localhost:{}/", lab.https.port()));
        let said = succeed(command).await;

        let all =
            "2000 total, 2000 started, 2000 done, 2000 succeeded, 0 failed, 0 errored, 0 timeout";
        assert!(said.contains(all), "{version}: {said}");
        assert!(said.contains("status codes: 2000 2xx"), "{version}: {said}");
    }
}

on_each_carrier!(every_request_of_nghttp_on_one_connection_succeeds);
async fn every_request_of_nghttp_on_one_connection_succeeds(carrier: Carrier) {
    let Some(nghttp) = tools::program("nghttp") else {
        return;
    };
    let lab = Lab::start().await.over(carrier);
    let upstream = Server::text("hello").await;
    let _agent = lab.agent("blog", &upstream).await;

    let mut command = nghttp.command();
    command
        .args(["--null-out", "--stat", "--multiply=50", "--no-verify-peer"])
        .arg("--header=:authority: blog.localhost")
        .arg(format!("https://{}/", lab.https));
    let said = succeed(command).await;

    let succeeded = said
        .lines()
        .filter(|line| line.split_whitespace().nth(4) == Some("200"))
        .count();
    assert_eq!(succeeded, 50, "{said}");
}

on_each_carrier!(a_websocket_client_and_server_understand_each_other);
async fn a_websocket_client_and_server_understand_each_other(carrier: Carrier) {
    let Some(python) = tools::python() else {
        return;
    };
    let lab = Lab::start().await.over(carrier);
    let mut server = Process::spawn(python.script("websocket_server.py"));
    let upstream: Address = format!("127.0.0.1:{}", server.port().await)
        .parse()
        .unwrap();
    let _agent = lab.agent("chat", Upstream::from(upstream)).await;
    let client = |scheme: &str, port: u16| {
        let mut command = python.script("websocket_client.py");
        command
            .arg(format!("{scheme}://chat.localhost:{port}/"))
            .arg(port.to_string());
        command
    };

    let plain = succeed(client("ws", lab.http.port())).await;
    let mut over_tls = client("wss", lab.https.port());
    over_tls.arg(lab.ca());
    let over_tls = succeed(over_tls).await;

    assert_eq!((&plain[..], &over_tls[..]), ("all well\n", "all well\n"));
    for _ in 0..2 {
        server.line("closed 4002 the client has enough").await;
        server.line("closed 4001 the server has enough").await;
    }
}

fn fetch(curl: &Tool, lab: &Lab) -> Command {
    let mut command = curl.command();
    command
        .args(["--disable", "--silent", "--show-error", "--max-time", "60"])
        .arg("--cacert")
        .arg(lab.ca());
    command
}

fn directory_upstream(path: &Path) -> Upstream {
    Address::Directory(path.into()).into()
}
