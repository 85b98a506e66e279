//! `qtunnel login` on a terminal: what is typed there is not shown.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::pty::openpty;
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{LocalFlags, tcgetattr};
use nix::unistd::Pid;
use tokio::process::Child;

use crate::lab::process::qtunnel;
use crate::lab::within;

/// A terminal, and `qtunnel login` that asks on it.
struct Asked {
    screen: File,
    keyboard: File,
    terminal: OwnedFd,
    program: Child,
    shown: String,
}

impl Asked {
    async fn start(home: &Path) -> Self {
        let pty = openpty(None, None).unwrap();
        let mut command = qtunnel(home, ["login", "edge.example"]);
        command
            .stdin(pty.slave.try_clone().unwrap())
            .stdout(pty.slave.try_clone().unwrap())
            .stderr(pty.slave.try_clone().unwrap())
            .kill_on_drop(true);
        let mut asked = Self {
            screen: pty.master.try_clone().unwrap().into(),
            keyboard: pty.master.into(),
            terminal: pty.slave,
            program: command.spawn().unwrap(),
            shown: String::new(),
        };
        asked.shows("token").await;
        asked
    }

    /// Wait until the terminal shows a text.
    async fn shows(&mut self, text: &str) {
        while !self.shown.contains(text) {
            let mut screen = self.screen.try_clone().unwrap();
            let reading = tokio::task::spawn_blocking(move || {
                let mut piece = [0; 1024];
                let read = screen.read(&mut piece).unwrap();
                String::from_utf8_lossy(&piece[..read]).into_owned()
            });
            self.shown += &within("something on the screen", reading).await.unwrap();
        }
    }

    fn shows_what_is_typed(&self) -> bool {
        let modes = tcgetattr(self.terminal.as_fd()).unwrap();
        modes.local_flags.contains(LocalFlags::ECHO)
    }
}

#[tokio::test]
async fn a_token_that_is_typed_is_remembered_and_not_shown() {
    let home = tempfile::tempdir().unwrap();
    let mut asked = Asked::start(home.path()).await;

    asked.keyboard.write_all(b"qt_secret\n").unwrap();
    asked.shows("remembered").await;

    assert!(!asked.shown.contains("secret"), "{:?}", asked.shown);
    let status = within("the end", asked.program.wait()).await.unwrap();
    assert!(status.success());
    assert!(asked.shows_what_is_typed());
    let file = std::fs::read_to_string(home.path().join(".config/qtunnel/config.toml")).unwrap();
    assert!(file.contains("qt_secret"), "{file}");
}

#[tokio::test]
async fn whoever_is_asked_and_interrupts_gets_the_terminal_back() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let home = tempfile::tempdir().unwrap();
        let mut asked = Asked::start(home.path()).await;
        assert!(!asked.shows_what_is_typed());

        kill(Pid::from_raw(asked.program.id().unwrap() as i32), signal).unwrap();
        let status = within("the end", asked.program.wait()).await.unwrap();

        assert!(!status.success());
        assert!(asked.shows_what_is_typed());
    }
}
