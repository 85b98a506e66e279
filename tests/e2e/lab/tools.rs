//! Other people's programs that tests run: the system's, and libraries where `scripts/test` has put
//! them. One that is missing fails its test under `CI=true`; elsewhere the test says that it is
//! skipped.

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::Stdio;

use tokio::process::Command;

/// A program that is there.
pub struct Tool {
    pub path: PathBuf,
    environment: Vec<(&'static str, OsString)>,
}

impl Tool {
    /// Begin a command. Proxies and settings of the machine do not reach it.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.path);
        for name in ["http_proxy", "https_proxy", "all_proxy", "no_proxy"] {
            command.env_remove(name).env_remove(name.to_uppercase());
        }
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    /// Begin a command that runs a script of `tests/e2e/programs`.
    pub fn script(&self, name: &str) -> Command {
        let mut command = self.command();
        command.arg(
            PathBuf::from(env!("CARGO_MANIFEST_DIR"))
                .join("tests/e2e/programs")
                .join(name),
        );
        command
    }
}

/// Find a program on the search path.
pub fn program(name: &str) -> Option<Tool> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Not every user has those of servers on the path.
    let found = std::env::split_paths(&path)
        .chain(["/usr/sbin".into()])
        .map(|directory| directory.join(name))
        .find(|path| path.is_file());
    found
        .map(|path| Tool {
            path,
            environment: Vec::new(),
        })
        .or_else(|| missing(name))
}

/// Find Python with the libraries that the tests use.
pub fn python() -> Option<Tool> {
    let home = cache().join("python");
    if !home.join("installed").is_file() {
        return missing("Python's libraries");
    }
    Some(Tool {
        path: home.join("bin/python"),
        environment: vec![("PYTHONUNBUFFERED", "1".into())],
    })
}

/// Find Python with web frameworks and other servers, which are many.
pub fn frameworks() -> Option<Tool> {
    let home = cache().join("frameworks");
    if !home.join("installed").is_file() {
        return missing("Python's web frameworks");
    }
    Some(Tool {
        path: home.join("bin/python"),
        environment: vec![("PYTHONUNBUFFERED", "1".into())],
    })
}

/// Find mitmproxy without its window, which has libraries of its own.
pub fn mitmdump() -> Option<Tool> {
    let home = cache().join("mitmproxy");
    if !home.join("installed").is_file() {
        return missing("mitmproxy");
    }
    Some(Tool {
        path: home.join("bin/mitmdump"),
        environment: vec![("PYTHONUNBUFFERED", "1".into())],
    })
}

/// Find Node.js with the libraries that the tests use: scripts find them below `NODE_LIBRARIES`.
pub fn node() -> Option<Tool> {
    node_with("node", "Node.js's libraries")
}

/// Find Node.js with development servers, which are large.
pub fn dev_servers() -> Option<Tool> {
    node_with("dev-servers", "Node.js's development servers")
}

fn node_with(directory: &str, what: &str) -> Option<Tool> {
    let home = cache().join(directory);
    if !home.join("installed").is_file() {
        return missing(what);
    }
    let mut node = program("node")?;
    node.environment
        .push(("NODE_LIBRARIES", home.join("node_modules").into()));
    Some(node)
}

fn missing(what: &str) -> Option<Tool> {
    skip(&format!("needs {what}, which scripts/test installs"));
    None
}

/// Say that a test is skipped, or fail it under `CI=true`.
pub fn skip(why: &str) {
    let test = std::thread::current();
    let hint = format!("{} {why}", test.name().unwrap_or("a test"));
    assert!(
        std::env::var_os("CI").is_none_or(|ci| ci.is_empty() || ci == "false"),
        "{hint}"
    );
    // Not `eprintln!`, which the test runner hides when the test passes.
    let _ = writeln!(std::io::stderr(), "SKIPPED: {hint}");
}

fn cache() -> PathBuf {
    match std::env::var_os("QTUNNEL_TEST_TOOLS") {
        Some(cache) => cache.into(),
        None => {
            PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache/qtunnel-test")
        }
    }
}
