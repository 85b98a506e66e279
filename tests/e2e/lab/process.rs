//! The program itself, and other programs, as processes.

use std::ffi::OsStr;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::{way, within};

/// How long to wait for a program that moves a hundred megabytes or starts a browser, on a machine that
/// does other things too.
const RUN: Duration = Duration::from_secs(120);

/// What a program has said, and how it ended.
#[derive(Debug)]
pub struct Finished {
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

/// Run a program to its end, whatever that is.
pub async fn run(mut command: Command) -> Finished {
    command.stdin(Stdio::null()).kill_on_drop(true);
    let limit = way::patient(RUN);
    let output = timeout(limit, command.output())
        .await
        .unwrap_or_else(|_| panic!("{command:?} did not end within {limit:?}"))
        .unwrap_or_else(|err| panic!("{command:?} does not start: {err}"));
    Finished {
        status: output.status,
        stdout: output.stdout,
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Run a program that must succeed, and return what it said on stdout.
pub async fn succeed(command: Command) -> String {
    let shown = format!("{command:?}");
    let finished = run(command).await;
    assert!(finished.status.success(), "{shown} failed: {finished:#?}");
    String::from_utf8(finished.stdout).expect("text")
}

/// Begin a command that runs qtunnel in a home directory of its own. Proxies and settings of the
/// machine do not reach it.
pub fn qtunnel<A: AsRef<OsStr>>(
    home: &std::path::Path,
    args: impl IntoIterator<Item = A>,
) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qtunnel"));
    command
        .args(args)
        .current_dir(home)
        .env("HOME", home)
        .env_remove("XDG_CONFIG_HOME")
        .env_remove("XDG_STATE_HOME")
        .env_remove("STATE_DIRECTORY");
    let ours =
        |name: &str| name.starts_with("QTUNNEL_") || name.to_ascii_lowercase().ends_with("_proxy");
    for (name, _) in std::env::vars().filter(|(name, _)| ours(name)) {
        command.env_remove(name);
    }
    command
}

/// A process whose lines (stdout and stderr alike) can be waited for. Dropped, it is killed.
pub struct Process {
    child: Child,
    lines: mpsc::UnboundedReceiver<String>,
    /// Every line that was waited past.
    pub seen: Vec<String>,
}

impl Process {
    /// Start qtunnel with these arguments, in a home directory of its own.
    pub fn qtunnel<A: AsRef<OsStr>>(
        home: &std::path::Path,
        args: impl IntoIterator<Item = A>,
    ) -> Self {
        Self::spawn(qtunnel(home, args))
    }

    /// Start any program.
    pub fn spawn(mut command: Command) -> Self {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command
            .spawn()
            .unwrap_or_else(|err| panic!("{command:?} does not start: {err}"));
        let (sender, lines) = mpsc::unbounded_channel();
        if let Some(stdout) = child.stdout.take() {
            follow(stdout, sender.clone());
        }
        if let Some(stderr) = child.stderr.take() {
            follow(stderr, sender);
        }
        Self {
            child,
            lines,
            seen: Vec::new(),
        }
    }

    /// Wait for a line that contains a text, and return it.
    pub async fn line(&mut self, text: &str) -> String {
        self.line_that(&format!("a line with {text:?}"), |line| line.contains(text))
            .await
    }

    /// Wait for lines that contain these texts, in any order.
    pub async fn lines(&mut self, mut texts: Vec<&str>) {
        while !texts.is_empty() {
            let line = self
                .line_that(&format!("a line with one of {texts:?}"), |line| {
                    texts.iter().any(|text| line.contains(text))
                })
                .await;
            texts.retain(|text| !line.contains(text));
        }
    }

    /// Wait for a line that is as wanted, and return it.
    pub async fn line_that(&mut self, what: &str, found: impl Fn(&str) -> bool) -> String {
        let next = async {
            while let Some(line) = self.lines.recv().await {
                self.seen.push(line.clone());
                if found(&line) {
                    return Some(line);
                }
            }
            None
        };
        let ended = match timeout(way::patient(RUN), next).await {
            Ok(Some(line)) => return line,
            Ok(None) => "the program ended",
            Err(_) => "the program went on",
        };
        panic!("{ended} without {what}; it said {:#?}", self.seen)
    }

    /// Wait until the program has said on which port of 127.0.0.1 it is "listening".
    pub async fn port(&mut self) -> u16 {
        let line = self.line("listening ").await;
        let port = line.rsplit(' ').next().and_then(|port| port.parse().ok());
        port.unwrap_or_else(|| panic!("no port in {line:?}"))
    }

    /// Send a signal.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("the process is there");
    }

    /// The process's id.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().expect("the process is running") as i32)
    }

    /// Wait for the end, and return the exit status. All it said is in `seen` afterwards.
    pub async fn ended(&mut self) -> ExitStatus {
        let status = within("the program's end", self.child.wait())
            .await
            .expect("a child");
        while let Some(line) = self.lines.recv().await {
            self.seen.push(line);
        }
        status
    }

    /// The most memory that the process has had resident, in KiB.
    pub fn peak_memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()))
            .expect("a live process");
        let line = status
            .lines()
            .find(|line| line.starts_with("VmHWM:"))
            .expect("Linux says so");
        line.split_whitespace()
            .nth(1)
            .and_then(|kib| kib.parse().ok())
            .expect("a number")
    }
}

fn follow(stream: impl AsyncRead + Unpin + Send + 'static, lines: mpsc::UnboundedSender<String>) {
    // It ends with the process's output.
    tokio::spawn(async move {
        let mut reader = BufReader::new(stream).lines();
        while let Ok(Some(line)) = reader.next_line().await {
            let _ = lines.send(line);
        }
    });
}
