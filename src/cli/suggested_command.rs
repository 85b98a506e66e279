//! The command that `serve` prints for connecting an agent. It works unchanged when pasted into a POSIX shell.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::path::Path;

use qtunnel::{Edge, ServerAddr};

use super::settings::{self, Settings};

/// The settings, besides the token, with which an agent reaches and authenticates an edge.
pub struct SuggestedCommand {
    /// The flags, quoted for a shell.
    flags: Vec<String>,
    /// The edge, as in `--server` and `login`.
    server: String,
}

impl SuggestedCommand {
    /// Determine the settings of an agent on this machine for the local edge.
    pub fn local(edge: &Edge, settings: &Settings) -> Self {
        let has_default = |addrs: &[SocketAddr], port| {
            let has = |loopback: SocketAddr| addrs.contains(&loopback);
            has(([127, 0, 0, 1], port).into()) || has(([0u16, 0, 0, 0, 0, 0, 0, 1], port).into())
        };
        let server = reachable(edge).unwrap_or_else(|| "localhost:8443".into());
        let has_default_ports =
            has_default(edge.quic_addrs(), 8443) && has_default(edge.https_addrs(), 8443);
        // The state directory as the user who pastes the command finds it, which may differ under `sudo`.
        let uses_default_state = settings::state_dir(None)
            .is_ok_and(|default| same(&default, edge.state_dir()))
            && ["STATE_DIRECTORY", "SUDO_USER"]
                .iter()
                .all(|name| std::env::var_os(name).is_none());
        // A login or a project file may name another edge.
        let has_default_settings =
            settings.server.is_none() && settings.ca.is_none() && settings.pin.is_none();
        let mut command = Self {
            flags: Vec::new(),
            server,
        };
        if has_default_ports && uses_default_state && has_default_settings && edge.has_local_ca() {
            return command;
        }
        command
            .flags
            .push(format!("--server {}", quote(&command.server)));
        command.flags.push(format!("--pin {}", edge.pin()));
        command.add_websocket(edge);
        if settings::state_dir(None).is_err() {
            let dir =
                std::path::absolute(edge.state_dir()).unwrap_or_else(|_| edge.state_dir().into());
            command
                .flags
                .push(format!("--state-dir {}", quote(&dir.to_string_lossy())));
        }
        command
    }

    /// Determine the settings of an agent on another machine for the edge of a domain.
    pub fn remote(edge: &Edge, domain: &str, trusted: bool) -> Self {
        let addrs = [edge.quic_addrs(), edge.https_addrs()];
        let port = addrs.into_iter().flatten().map(SocketAddr::port).next();
        let server = ServerAddr {
            host: domain.to_owned(),
            port: port.unwrap_or(443),
        };
        let server = match domain {
            "localhost" => reachable(edge),
            _ => None,
        }
        .unwrap_or_else(|| server.to_string());
        let mut flags = Vec::new();
        if !trusted {
            flags.push(format!("--pin {}", edge.pin()));
        }
        Self { flags, server }
    }

    /// Return the command that publishes port 3000.
    pub fn connect(&self) -> String {
        let mut words = vec!["qtunnel connect 3000".to_owned()];
        words.extend(self.flags.iter().cloned());
        words.join(" ")
    }

    /// Return the command that stores the edge, with the token if it may be shown.
    pub fn login(&self, token: Option<&str>) -> String {
        let mut words = vec![format!("qtunnel login {}", quote(&self.server))];
        words.extend(token.map(|token| format!("--token {}", quote(token))));
        words.extend(self.flags.iter().cloned());
        words.join(" ")
    }

    /// Add the flags for the WebSocket if the edge has no QUIC, with its URL if that is not the default.
    fn add_websocket(&mut self, edge: &Edge) {
        if !edge.quic_addrs().is_empty() {
            return;
        }
        if let (true, Some(http)) = (edge.https_addrs().is_empty(), edge.http_addrs().first()) {
            let url = format!("ws://{}", local_address(*http));
            self.flags.push(format!("--websocket-url {}", quote(&url)));
        }
        self.flags.push("--transport websocket".to_owned());
    }
}

/// Return the address at which an agent on this machine reaches the edge.
fn reachable(edge: &Edge) -> Option<String> {
    let addrs = [edge.quic_addrs(), edge.https_addrs(), edge.http_addrs()];
    let all = addrs.into_iter().find(|addrs| !addrs.is_empty())?;
    Some(local_address(all[0]))
}

/// Format an address as it is reached from this machine.
fn local_address(addr: SocketAddr) -> String {
    match (addr.ip().is_unspecified(), addr) {
        (true, SocketAddr::V4(_)) => format!("127.0.0.1:{}", addr.port()),
        (true, SocketAddr::V6(_)) => format!("localhost:{}", addr.port()),
        (false, addr) => addr.to_string(),
    }
}

/// Report whether two paths lead to the same file.
fn same(one: &Path, other: &Path) -> bool {
    let resolve = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    resolve(one) == resolve(other)
}

/// Quote a word for a POSIX shell where necessary.
fn quote(word: &str) -> Cow<'_, str> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:@%+=,".contains(c);
    match !word.is_empty() && word.chars().all(plain) {
        true => word.into(),
        false => format!("'{}'", word.replace('\'', r"'\''")).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_with_a_meaning_to_the_shell_are_quoted() {
        for (word, quoted) in [
            ("localhost:8443", "localhost:8443"),
            ("[::1]:8443", "'[::1]:8443'"),
            ("/a b/ca.pem", "'/a b/ca.pem'"),
            ("it's", r"'it'\''s'"),
            ("~/x", "'~/x'"),
            ("", "''"),
        ] {
            assert_eq!(quote(word), quoted);
        }
    }

    #[test]
    fn an_unspecified_address_is_replaced_by_a_loopback_one() {
        for (addr, reached) in [
            ("0.0.0.0:1", "127.0.0.1:1"),
            ("[::]:1", "localhost:1"),
            ("[::1]:1", "[::1]:1"),
            ("192.0.2.1:1", "192.0.2.1:1"),
        ] {
            assert_eq!(local_address(addr.parse().unwrap()), reached);
        }
    }
}
