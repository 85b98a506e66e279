//! Development servers and other programs that know only their own address, under a public name with
//! `--host-header rewrite` and no change in the project: the page, and what makes it live.

use std::path::Path;

use nix::sys::signal::Signal;
use qtunnel::{Address, AgentConfig, HostHeader, Upstream};
use tempfile::TempDir;
use tokio::process::Command;

use crate::lab::process::{Process, succeed};
use crate::lab::tools::{self, Tool};
use crate::lab::{Lab, Running};

#[tokio::test]
async fn vite_replaces_a_module_in_the_page() {
    let Some(node) = tools::node() else { return };
    let project = project(VITE);
    let mut command = node.script("vite_server.mjs");
    command.arg(project.path());
    let Some(mut visit) = Visit::of(command, "/", "watch").await else {
        return;
    };
    // Before that nobody would tell the page of a change.
    visit
        .browser
        .lines(vec!["[vite] connected.", "shows before"])
        .await;

    write(project.path(), "text.js", "export const text = 'after'");

    visit.browser.line("shows after").await;
    let reloaded = visit.browser.seen.iter().any(|line| line == "reloaded");
    assert!(!reloaded, "{:#?}", visit.browser.seen);
    visit.end().await;
}

#[tokio::test]
async fn webpack_reloads_the_page() {
    let Some(node) = tools::dev_servers() else {
        return;
    };
    let project = project(WEBPACK);
    let mut command = node.script("webpack_server.mjs");
    command.arg(project.path());
    let served = Served::start(command).await;
    // Its page dials the port that it has itself, and so works where visitors come to the edge at that one.
    let url = format!("https://app.tunnel.test:{}/", served.port);
    let Some(mut visit) = Visit::to(&url, served, "watch").await else {
        return;
    };
    visit
        .browser
        .lines(vec!["heard on /ws", "shows before"])
        .await;

    write(project.path(), "text.js", "export const text = 'after'");

    visit.browser.line("shows after").await;
    visit.end().await;
}

#[tokio::test]
async fn next_runs_an_action_and_shows_a_change() {
    let Some(node) = tools::dev_servers() else {
        return;
    };
    let project = project(NEXT);
    let mut command = node.script("next_server.mjs");
    command.arg(project.path());
    let Some(mut visit) = Visit::of(command, "/", "act").await else {
        return;
    };
    visit.browser.line("heard sesame").await;

    write(project.path(), "app/text.js", "export const text = 'after'");

    visit.browser.line("shows after").await;
    visit.end().await;
}

#[tokio::test]
async fn django_lets_somebody_in_through_a_form() {
    let Some(python) = tools::frameworks() else {
        return;
    };
    let project = project(&[]);
    let mut command = python.script("django_server.py");
    command.arg(project.path());
    let Some(mut visit) = Visit::of(command, "/", "login").await else {
        return;
    };

    visit.browser.line("shows hello ada").await;
    visit.end().await;
}

#[tokio::test]
async fn a_jupyter_kernel_runs() {
    let Some(python) = tools::frameworks() else {
        return;
    };
    let project = project(&[]);
    let mut command = python.script("notebook_server.py");
    command.arg(project.path());
    // Notebooks and settings of whoever runs the tests are none of its business.
    command.env("HOME", project.path());
    let Some(mut visit) = Visit::of(command, "/login?token=secret", "kernel").await else {
        return;
    };

    visit.browser.line("result 42").await;
    visit.end().await;
}

#[tokio::test]
async fn flask_redirects_to_the_public_name() {
    let (Some(python), Some(curl)) = (tools::frameworks(), tools::program("curl")) else {
        return;
    };
    let served = Served::start(python.script("flask_server.py")).await;
    let public = served.public();
    let mut command = curl.command();
    command.args(["--silent", "--show-error", "--location", "--include"]);
    command.arg("--resolve").arg(format!(
        "{}:127.0.0.1",
        public.strip_prefix("https://").expect("a URL")
    ));
    command.arg("--cacert").arg(served.lab.ca());
    command.arg(format!("{public}/old"));

    let answers = succeed(command).await.to_lowercase();

    assert!(
        answers.contains(&format!("\r\nlocation: {public}/new/\r\n")),
        "{answers}"
    );
    assert!(
        answers.contains(&format!("\r\nlink: <{public}/new/>;")),
        "{answers}"
    );
    assert!(answers.ends_with("the new page\n"), "{answers}");
}

#[tokio::test]
async fn an_mcp_client_uses_a_tool() {
    let Some(python) = tools::frameworks() else {
        return;
    };
    let served = Served::start(python.script("mcp_server.py")).await;
    let mut client = python.script("mcp_client.py");
    let port = served.lab.http.port();
    client.arg(format!("http://app.tunnel.test:{port}/mcp"));

    let said = succeed(client).await;

    assert_eq!(said.trim(), "added 42");
}

/// A program behind a tunnel named `app`.
struct Served {
    lab: Lab,
    port: u16,
    _server: Process,
    _agent: Running,
}

impl Served {
    async fn start(server: Command) -> Self {
        let mut server = Process::spawn(server);
        let port = server.port().await;
        let address: Address = port.to_string().parse().expect("an address");
        let lab = Lab::public().await;
        let rewrite =
            |config: &mut AgentConfig| config.tunnels[0].host_header = HostHeader::Rewrite;
        let agent = lab
            .agent_with("app", Upstream::from(address), rewrite)
            .await;
        Self {
            lab,
            port,
            _server: server,
            _agent: agent,
        }
    }

    fn public(&self) -> String {
        format!("https://app.tunnel.test:{}", self.lab.https.port())
    }
}

/// A browser on the page of a program.
struct Visit {
    browser: Process,
    _served: Served,
    _profile: TempDir,
}

impl Visit {
    async fn of(server: Command, path: &str, scenario: &str) -> Option<Self> {
        let served = Served::start(server).await;
        let url = served.public() + path;
        Self::to(&url, served, scenario).await
    }

    async fn to(url: &str, served: Served, scenario: &str) -> Option<Self> {
        let (node, chromium): (Tool, Tool) = (tools::node()?, tools::program("chromium")?);
        let profile = tempfile::tempdir().expect("a temporary directory");
        let mut browser = node.script("public_browser.mjs");
        browser.arg(url).arg(profile.path());
        browser.arg(&chromium.path).arg(scenario);
        browser.arg(served.lab.https.to_string());
        Some(Self {
            browser: Process::spawn(browser),
            _served: served,
            _profile: profile,
        })
    }

    async fn end(mut self) {
        self.browser.signal(Signal::SIGTERM);
        self.browser.ended().await;
    }
}

/// Make a project of these files.
fn project(files: &[(&str, &str)]) -> TempDir {
    let directory = tempfile::tempdir().expect("a temporary directory");
    for (name, text) in files {
        write(directory.path(), name, text);
    }
    directory
}

fn write(project: &Path, name: &str, text: &str) {
    let path = project.join(name);
    std::fs::create_dir_all(path.parent().expect("a directory")).expect("a writable directory");
    std::fs::write(path, text).expect("a writable directory");
}

const VITE: &[(&str, &str)] = &[
    (
        "index.html",
        "<!doctype html><p id=message></p><script type=module src=/main.js></script>",
    ),
    (
        "main.js",
        "import { text } from './text.js'\n\
         const show = (text) => { message.textContent = text }\n\
         show(text)\n\
         import.meta.hot.accept('./text.js', (module) => show(module.text))",
    ),
    ("text.js", "export const text = 'before'"),
];

const WEBPACK: &[(&str, &str)] = &[
    (
        "index.html",
        "<!doctype html><p id=message></p><script src=/main.js></script>",
    ),
    (
        "main.js",
        "import { text } from './text.js'\nmessage.textContent = text",
    ),
    ("text.js", "export const text = 'before'"),
];

const NEXT: &[(&str, &str)] = &[
    (
        "app/layout.js",
        "export default function Layout({ children }) {\n\
         return <html><body>{children}</body></html>\n}",
    ),
    (
        "app/page.js",
        "'use client'\n\
         import { useActionState } from 'react'\n\
         import { hear } from './actions.js'\n\
         import { text } from './text.js'\n\
         export default function Page() {\n\
         const [heard, action] = useActionState(hear, '')\n\
         return <form action={action}><p>{text} {heard}</p><input name=\"word\" /><button>go</button></form>\n}",
    ),
    (
        "app/actions.js",
        "'use server'\n\
         export async function hear(_before, form) { return `heard ${form.get('word')}` }",
    ),
    ("app/text.js", "export const text = 'before'"),
];
