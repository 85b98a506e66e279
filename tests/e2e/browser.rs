//! A development server with live reload, in front of a real browser.

use std::path::Path;

use nix::sys::signal::Signal;
use qtunnel::{Address, Carrier, HostHeader, Upstream};

use crate::lab::process::Process;
use crate::lab::tools::{self, Tool};
use crate::lab::{Lab, Running};

on_each_carrier!(a_page_changes_in_the_browser_when_its_source_does_over_http);
async fn a_page_changes_in_the_browser_when_its_source_does_over_http(carrier: Carrier) {
    let Some(vite) = Vite::start(carrier).await else {
        return;
    };
    let port = vite.lab.http.port();
    vite.changes_in_the_browser(&format!("http://vite.localhost:{port}/"))
        .await;
}

on_each_carrier!(a_page_changes_in_the_browser_when_its_source_does_over_https);
/// Browsers open WebSockets on an HTTP/2 connection by extended CONNECT (RFC 8441).
async fn a_page_changes_in_the_browser_when_its_source_does_over_https(carrier: Carrier) {
    let Some(vite) = Vite::start(carrier).await else {
        return;
    };
    let port = vite.lab.https.port();
    vite.changes_in_the_browser(&format!("https://vite.localhost:{port}/"))
        .await;
}

on_each_carrier!(a_development_server_that_knows_only_itself_is_content_with_a_rewritten_host);
/// Vite refuses hosts that it does not know: what `--host-header rewrite` is for.
async fn a_development_server_that_knows_only_itself_is_content_with_a_rewritten_host(
    carrier: Carrier,
) {
    let Some(node) = tools::node() else { return };
    let project = project("one");
    let (_server, upstream) = serve(&node, project.path()).await;
    let lab = Lab::with(|config| config.domain = "lab.test".into())
        .await
        .over(carrier);
    let _as_it_is = lab.agent("plain", upstream.clone()).await;
    let _rewritten = lab.agent_with("vite", upstream, rewrite).await;

    let refused = lab.visitor("plain").get("/").await;
    let shown = lab.visitor("vite").get("/").await;

    assert_eq!((refused.status, shown.status), (403, 200));
    assert!(shown.text().contains("/@vite/client"), "{}", shown.text());
}

/// A Vite development server behind a tunnel named `vite`.
struct Vite {
    lab: Lab,
    node: Tool,
    chromium: std::path::PathBuf,
    project: tempfile::TempDir,
    _server: Process,
    _agent: Running,
}

impl Vite {
    async fn start(carrier: Carrier) -> Option<Self> {
        let (node, chromium) = (tools::node()?, tools::program("chromium")?);
        let lab = Lab::start().await.over(carrier);
        let project = project("before");
        let (server, upstream) = serve(&node, project.path()).await;
        let agent = lab.agent_with("vite", upstream, rewrite).await;
        Some(Self {
            lab,
            node,
            chromium: chromium.path,
            project,
            _server: server,
            _agent: agent,
        })
    }

    async fn changes_in_the_browser(self, url: &str) {
        let profile = tempfile::tempdir().unwrap();
        let mut browser = self.node.script("browser.mjs");
        browser.arg(url).arg(profile.path()).arg(&self.chromium);
        let mut browser = Process::spawn(browser);
        browser
            .lines(vec!["[vite] connected.", "showing before"])
            .await;

        write_text(self.project.path(), "after");

        browser.line("showing after").await;
        browser.signal(Signal::SIGTERM);
        browser.ended().await;
        let reloaded = browser.seen.iter().any(|line| line.contains("reloaded"));
        assert!(!reloaded, "{:#?}", browser.seen);
    }
}

/// Make a page that shows a text of a module of its own, which can be replaced while it runs.
fn project(text: &str) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let page = "<!doctype html><p id=message></p><script type=module src=/main.js></script>";
    let main = "
        import { text } from './text.js'
        function show(text) {
            message.textContent = text
            console.log('showing', message.textContent)
        }
        show(text)
        import.meta.hot.accept('./text.js', (module) => show(module.text))";
    std::fs::write(directory.path().join("index.html"), page).unwrap();
    std::fs::write(directory.path().join("main.js"), main).unwrap();
    write_text(directory.path(), text);
    directory
}

fn write_text(project: &Path, text: &str) {
    let module = format!("export const text = {text:?}\n");
    std::fs::write(project.join("text.js"), module).unwrap();
}

async fn serve(node: &Tool, project: &Path) -> (Process, Upstream) {
    let mut command = node.script("vite_server.mjs");
    command.arg(project);
    let mut server = Process::spawn(command);
    let upstream: Address = format!("127.0.0.1:{}", server.port().await)
        .parse()
        .unwrap();
    (server, upstream.into())
}

fn rewrite(config: &mut qtunnel::AgentConfig) {
    config.tunnels[0].host_header = HostHeader::Rewrite;
}
