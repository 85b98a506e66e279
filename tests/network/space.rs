//! Network namespaces.

use std::fs::File;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use nix::sched::{CloneFlags, setns};

use crate::lab::tools;

/// Whether namespaces can be made here, and all that the cases do in them can be done.
pub fn may_be_made() -> bool {
    if !nix::unistd::geteuid().is_root() {
        tools::skip("needs root, to make network namespaces");
        return false;
    }
    let programs = ["ip", "ss", "sysctl", "nft", "conntrack"];
    programs.iter().all(|name| tools::program(name).is_some())
}

/// A namespace, removed when it is dropped.
pub struct Space {
    pub name: String,
}

impl Space {
    /// Make a namespace whose loopback is up.
    pub fn make(role: &str) -> Self {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let name = format!("qt-{}-{number}-{role}", std::process::id());
        succeed(Command::new("ip").args(["netns", "add", &name]));
        let space = Self { name };
        space.ip("link set lo up");
        space
    }

    /// Run `ip` in it.
    pub fn ip(&self, arguments: &str) {
        let mut command = Command::new("ip");
        succeed(command.args(["-n", &self.name]).args(words(arguments)));
    }

    /// Run a program in it, and return what it said.
    pub fn run(&self, program: &str, arguments: &str) -> String {
        succeed(self.command(program).args(words(arguments)))
    }

    /// Begin a command in it.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]);
        command
    }

    /// The way in.
    pub fn entrance(&self) -> Entrance {
        Entrance(format!("/run/netns/{}", self.name))
    }
}

/// The way into a namespace.
pub struct Entrance(String);

impl Entrance {
    /// Do something inside, on a thread of its own; sockets stay where they were opened.
    pub fn enter<T: Send>(self, act: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(move || {
                let space = File::open(self.0).expect("the namespace is there");
                setns(space, CloneFlags::CLONE_NEWNET).expect("root may enter it");
                act()
            });
            inside
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// [`enter`](Self::enter), with a runtime.
    pub fn block_on<T: Send>(self, act: impl AsyncFnOnce() -> T + Send) -> T {
        self.enter(move || {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime")
                .block_on(act())
        })
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        // Its devices with it, at once; without them the threads of a link end.
        let _ = self.command("ip").args(["link", "del", "wire"]).output();
        let _ = Command::new("ip")
            .args(["netns", "del", &self.name])
            .output();
    }
}

fn succeed(command: &mut Command) -> String {
    let output = command
        .output()
        .unwrap_or_else(|err| panic!("{command:?} does not start: {err}"));
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn words(arguments: &str) -> impl Iterator<Item = &str> {
    arguments.split_whitespace()
}
