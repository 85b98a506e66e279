//! Prompts on the terminal whose answer is not shown.

use std::io::{self, BufRead, Read};

/// Print a question, and read a line without showing it.
///
/// # Errors
/// If the terminal fails, or whoever is asked interrupts.
#[cfg(unix)]
pub async fn secret(question: &str) -> io::Result<String> {
    use tokio::signal::unix::{SignalKind, signal};

    // They would end the process, and leave a terminal that shows nothing.
    let mut interrupted = signal(SignalKind::interrupt())?;
    let mut terminated = signal(SignalKind::terminate())?;
    let _hidden = Hidden::start()?;
    eprint!("{question}");
    // Nobody waits for it once it is of no use.
    let line = tokio::task::spawn_blocking(line);
    tokio::select! {
        line = line => return line.map_err(io::Error::other)?,
        _ = interrupted.recv() => {}
        _ = terminated.recv() => {}
    }
    eprintln!();
    Err(io::ErrorKind::Interrupted.into())
}

/// Print a question, and read a line without showing it.
///
/// # Errors
/// If the terminal fails.
#[cfg(windows)]
pub async fn secret(question: &str) -> io::Result<String> {
    eprint!("{question}");
    rpassword::read_password()
}

/// Read a line of stdin.
///
/// # Errors
/// If it cannot be read, or is no text.
pub fn line() -> io::Result<String> {
    let mut line = String::new();
    let mut stdin = io::stdin().lock().take(LONGEST_LINE);
    stdin.read_line(&mut line).map(|_| line)
}

/// A terminal on stdin that does not show what is typed, until this is dropped.
#[cfg(unix)]
struct Hidden(rustix::termios::Termios);

#[cfg(unix)]
impl Hidden {
    fn start() -> io::Result<Self> {
        use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};

        let before = tcgetattr(io::stdin())?;
        let mut hidden = before.clone();
        hidden.local_modes.remove(LocalModes::ECHO);
        hidden.local_modes.insert(LocalModes::ECHONL);
        tcsetattr(io::stdin(), OptionalActions::Flush, &hidden)?;
        Ok(Self(before))
    }
}

#[cfg(unix)]
impl Drop for Hidden {
    fn drop(&mut self) {
        use rustix::termios::{OptionalActions, tcsetattr};

        // There is nobody to tell if it fails: the terminal is gone.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.0);
    }
}

/// More than any token has, in bytes.
const LONGEST_LINE: u64 = 64 << 10;
