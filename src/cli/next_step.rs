//! The line that `serve` prints for whoever wants to publish something: it works as it is, pasted into a shell.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::path::Path;

use qtunnel::{Edge, ServerAddr};

use super::settings::{self, Settings};

/// What an agent must be told, besides its token, to reach and to recognise an edge.
pub struct NextStep {
    /// Flags as they are typed.
    flags: Vec<String>,
    /// The edge, as `--server` and `login` take it.
    server: String,
}

impl NextStep {
    /// Find out what an agent on this machine must be told about the local edge.
    pub fn local(edge: &Edge, settings: &Settings) -> Self {
        let usual = |addrs: &[SocketAddr], port| {
            let has = |loopback: SocketAddr| addrs.contains(&loopback);
            has(([127, 0, 0, 1], port).into()) || has(([0u16, 0, 0, 0, 0, 0, 0, 1], port).into())
        };
        let server = reachable(edge).unwrap_or_else(|| "localhost:8443".into());
        let is_usual = usual(edge.quic_addrs(), 8443) && usual(edge.https_addrs(), 8443);
        // As whoever pastes the line will find it, who is another user than `sudo`'s.
        let uses_usual_state = settings::state_dir(None)
            .is_ok_and(|usual| same(&usual, edge.state_dir()))
            && ["STATE_DIRECTORY", "SUDO_USER"]
                .iter()
                .all(|name| std::env::var_os(name).is_none());
        // A login, or a file of the project, would lead to another edge.
        let is_default =
            settings.server.is_none() && settings.ca.is_none() && settings.pin.is_none();
        let mut step = Self {
            flags: Vec::new(),
            server,
        };
        if is_usual && uses_usual_state && is_default && edge.has_local_ca() {
            return step;
        }
        step.flags.push(format!("--server {}", quote(&step.server)));
        step.flags.push(format!("--pin {}", edge.pin()));
        step.add_websocket(edge);
        if settings::state_dir(None).is_err() {
            let dir =
                std::path::absolute(edge.state_dir()).unwrap_or_else(|_| edge.state_dir().into());
            step.flags
                .push(format!("--state-dir {}", quote(&dir.to_string_lossy())));
        }
        step
    }

    /// Find out what an agent elsewhere must be told about the edge of a domain.
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

    /// Write the command that publishes port 3000.
    pub fn connect(&self) -> String {
        let mut words = vec!["qtunnel connect 3000".to_owned()];
        words.extend(self.flags.iter().cloned());
        words.join(" ")
    }

    /// Write the command that remembers the edge, with the token if it may be shown.
    pub fn login(&self, token: Option<&str>) -> String {
        let mut words = vec![format!("qtunnel login {}", quote(&self.server))];
        words.extend(token.map(|token| format!("--token {}", quote(token))));
        words.extend(self.flags.iter().cloned());
        words.join(" ")
    }

    /// Say where the WebSocket is, if it is all there is and not where agents look for it.
    fn add_websocket(&mut self, edge: &Edge) {
        if !edge.quic_addrs().is_empty() {
            return;
        }
        if let (true, Some(http)) = (edge.https_addrs().is_empty(), edge.http_addrs().first()) {
            let url = format!("ws://{}", there(*http));
            self.flags.push(format!("--websocket-url {}", quote(&url)));
        }
        self.flags.push("--transport websocket".to_owned());
    }
}

/// Where an agent on this machine reaches the edge.
fn reachable(edge: &Edge) -> Option<String> {
    let addrs = [edge.quic_addrs(), edge.https_addrs(), edge.http_addrs()];
    let all = addrs.into_iter().find(|addrs| !addrs.is_empty())?;
    Some(there(all[0]))
}

/// Write an address as somebody on this machine reaches it.
fn there(addr: SocketAddr) -> String {
    match (addr.ip().is_unspecified(), addr) {
        (true, SocketAddr::V4(_)) => format!("127.0.0.1:{}", addr.port()),
        (true, SocketAddr::V6(_)) => format!("localhost:{}", addr.port()),
        (false, addr) => addr.to_string(),
    }
}

fn same(one: &Path, other: &Path) -> bool {
    let resolve = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    resolve(one) == resolve(other)
}

/// Quote a word for a POSIX shell where it needs that.
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
    fn words_are_quoted_where_a_shell_would_read_more_into_them() {
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
    fn an_address_that_means_all_is_reached_on_this_machine() {
        for (addr, reached) in [
            ("0.0.0.0:1", "127.0.0.1:1"),
            ("[::]:1", "localhost:1"),
            ("[::1]:1", "[::1]:1"),
            ("192.0.2.1:1", "192.0.2.1:1"),
        ] {
            assert_eq!(there(addr.parse().unwrap()), reached);
        }
    }
}
